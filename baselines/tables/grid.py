"""A table as text cells: how a number is printed, and the spellings of the whole in Markdown, LaTeX (booktabs), CSV and
as a PNG.

A judge's score from 0 to 10 has two decimals, as published. Other metrics live on other scales and have four
significant digits. An unknown number is a dash, never a zero. Whoever builds a grid decides what a cell says; the
spellings only dress it, so all of them say the same. A name in backticks (`code`) is set in a typewriter face.

Names of models and tasks come from files of others. Whatever they are, they stay text: no formula in CSV, which a
spreadsheet would run, no HTML and no link in Markdown, no command in LaTeX, no mathematics in the image.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.results.records import VIESCORE
from baselines.tables.statistics import Interval
from emu3.files import whole_file

if TYPE_CHECKING:  # only `draw` needs it, and it takes a second to import
    from matplotlib.axes import Axes

UNKNOWN = "–"

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
}

INK, SOFT, LINE = "#1b1d21", "#5c636e", "#c9ced6"
_POINTS, _ROW, _PAD = 9, 0.25, 0.18
# Inches per character of the sans-serif face at 9 points, wide enough for digits and capitals.
_CHARACTER = 0.073


_SPREADSHEET_NUMBER = re.compile(r"[+-][0-9.]+(?:e[+-]?[0-9]+)?\*?(?: \[[+-]?[0-9.]+, [+-]?[0-9.]+\])?")


def code(name: str) -> str:
    """A name in backticks, whatever is in it."""
    return f"`{one_line_of(name).replace('`', chr(39))}`"


def one_line_of(text: str) -> str:
    """Text without line breaks and control characters."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def csv_cell(text: str) -> str:
    """A text for a CSV file: one that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = one_line_of(text)
    is_formula = text.startswith(("=", "@")) or (
        text.startswith(("+", "-")) and not _SPREADSHEET_NUMBER.fullmatch(text)
    )
    return f"'{text}" if is_formula else text


def number(value: float, metric: str = VIESCORE, sign: str = "") -> str:
    """`3.10`; with sign "+" also a positive number shows its sign."""
    if metric == VIESCORE:
        return fixed(value, 2, sign)
    if abs(value) >= 1000:
        return f"{value:{sign}.0f}"
    # "#" keeps trailing zeros, so that the numbers of a column end alike.
    return f"{value:{sign}#.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:{sign}.1e}"


def fixed(value: float, decimals: int, sign: str = "") -> str:
    """So many decimals; what rounds to zero has no minus."""
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def cell(mean: float | None, interval: Interval | None, sign: str = "", metric: str = VIESCORE) -> str:
    """`3.10 [2.81, 3.40]`; with sign "+" a difference shows its sign."""
    if mean is None:
        return UNKNOWN
    return " ".join([number(mean, metric, sign), *([brackets(interval, sign, metric)] if interval else [])])


def brackets(interval: Interval, sign: str = "", metric: str = VIESCORE) -> str:
    """`[2.81, 3.40]`"""
    return f"[{number(interval[0], metric, sign)}, {number(interval[1], metric, sign)}]"


@dataclass(frozen=True)
class Grid:
    """`columns` are the heads, the first of them over the names of the rows; every row has as many cells.

    Where `blocks` is set, a row with a name begins a block: unnamed rows below it belong to it, and a rule parts the
    blocks. `note` is what a reader has to know about the cells, `conditions` under which they came about.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    blocks: bool = False
    conditions: Sequence[str] = ()

    def begins_block(self, place: int) -> bool:
        """Whether a rule stands above row `place`."""
        return self.blocks and place > 0 and bool(self.rows[place][0])


def to_markdown(grid: Grid) -> str:
    lines = [_pipes(grid.columns), _pipes(["---", *("---:" for _ in grid.columns[1:])])]
    lines += [_pipes(row) for row in grid.rows]
    head = [markdown_text(text) for text in (f"**{grid.title}**" if grid.title else "", grid.note) if text]
    tail = ["\n".join(f"- {markdown_text(line)}" for line in grid.conditions)] if grid.conditions else []
    return "\n\n".join([*head, "\n".join(lines), *tail]) + "\n"


def markdown_text(text: str) -> str:
    """Text without HTML, links and line breaks; what stands in backticks stays as it is."""
    pieces = re.split(r"(`[^`]*`)", one_line_of(text))
    safe = [piece.replace("<", "&lt;").replace("](", "]\\(") for piece in pieces]
    return "".join(pieces[place] if place % 2 else piece for place, piece in enumerate(safe))


def to_latex(grid: Grid) -> str:
    """A `table` environment for a document that loads booktabs."""
    rows = []
    for place, row in enumerate(grid.rows):
        rows += ["\\midrule"] if grid.begins_block(place) else []
        rows.append(_ampersands(row))
    lines = [
        r"\begin{table}",
        r"\centering",
        *([f"\\caption{{{latex_text(' '.join(filter(None, [grid.title + '.', grid.note])))}}}"] if grid.title else []),
        f"\\begin{{tabular}}{{l{'r' * (len(grid.columns) - 1)}}}",
        r"\toprule",
        _ampersands(grid.columns),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *(f"\\par\\smallskip{{\\footnotesize {latex_text(line)}\\par}}" for line in grid.conditions),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(grid: Grid) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    tail = [["conditions", line, *[""] * (len(grid.columns) - 2)] for line in grid.conditions]
    writer.writerows([csv_cell(plain(text)) for text in row] for row in (grid.columns, *grid.rows, *tail))
    return file.getvalue()


def plain(text: str) -> str:
    """A cell without its dress."""
    return text.replace("`", "")


def latex_text(text: str) -> str:
    """Text with LaTeX's own characters escaped, backticks set in `texttt`."""
    pieces = re.split(r"`([^`]*)`", one_line_of(text))
    escaped = ["".join(_LATEX.get(sign, sign) for sign in piece) for piece in pieces]
    return "".join(f"\\texttt{{{piece}}}" if place % 2 else piece for place, piece in enumerate(escaped))


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(text).replace("|", "\\|") for text in cells) + " |"


def _ampersands(cells: Sequence[str]) -> str:
    row = " & ".join(map(latex_text, cells)) + r" \\"
    # A bracket or a star behind the last row's end would be that end's own argument.
    return f"{{}}{row}" if row.startswith(("[", "*")) else row


def draw(grid: Grid, path: Path) -> Path:
    """Write `grid` as a PNG of its natural size; returns `path`. Raises `ValueError` for a grid without rows."""
    if not grid.rows:
        raise ValueError("a grid without rows has no image")
    # Imported here: what prints text needs no drawing library.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cells = [[one_line_of(plain(text)) for text in row] for row in (grid.columns, *grid.rows)]
    widths = [max(len(row[place]) for row in cells) * _CHARACTER + 2 * _PAD for place in range(len(grid.columns))]
    width = sum(widths)
    columns = max(40, int(width / (_CHARACTER * 0.85)))
    notes = (grid.note, *map(plain, grid.conditions))
    wrapped = [line for note in notes for line in textwrap.wrap(one_line_of(note), columns)]
    heights = [0.4 if grid.title else 0.1, _ROW * len(cells), _ROW * len(wrapped) + 0.15]
    height = sum(heights)
    with mpl.rc_context(
        {"font.size": _POINTS, "text.color": INK, "font.family": "DejaVu Sans", "text.parse_math": False}
    ):
        figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        if grid.title:
            axes.text(_PAD, 0.22, one_line_of(grid.title), weight="bold", va="center", fontsize=_POINTS + 2)
        top = heights[0]
        for place, row in enumerate(cells):
            middle = top + (place + 0.5) * _ROW
            _write_row(axes, row, widths, middle, heading=place == 0)
            if place <= 1 or grid.begins_block(place - 1):
                axes.plot([_PAD, width - _PAD], [top + place * _ROW] * 2, color=INK if place < 2 else LINE, lw=0.8)
        bottom = top + heights[1]
        axes.plot([_PAD, width - _PAD], [bottom, bottom], color=INK, lw=0.8)
        for place, line in enumerate(wrapped):
            axes.text(_PAD, bottom + (place + 0.6) * _ROW, line, color=SOFT, va="center", fontsize=_POINTS - 1)
        with whole_file(path) as temporary:
            # Without the version of matplotlib, the same grid gives the same bytes.
            figure.savefig(temporary, format="png", metadata={"Software": None})
    return path


def _write_row(axes: Axes, row: list[str], widths: list[float], middle: float, *, heading: bool) -> None:
    """Names to the left, numbers to the right."""
    left = 0.0
    for place, (text, width) in enumerate(zip(row, widths, strict=True)):
        x, side = (left + _PAD, "left") if place == 0 else (left + width - _PAD, "right")
        axes.text(x, middle, text, ha=side, va="center", color=SOFT if heading else INK)
        left += width
