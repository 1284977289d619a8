"""A table as text cells, and its three spellings: Markdown, LaTeX (booktabs) and CSV.

Whoever builds a grid decides what a cell says, the spellings only dress it: all three print the same figures. A name
in backticks is a name of this project (a model, a file) and is set in a typewriter face. The picture of a grid is in
`baselines.tables.grid_picture`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
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


@dataclass(frozen=True)
class Grid:
    """`columns` are the heads, the first of them over the names of the rows; every row has as many cells.

    Where `blocks` is set, a row with a name begins a block: unnamed rows below it belong to it, and a rule parts the
    blocks. `note` is what a reader has to know about the cells.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    blocks: bool = False

    def begins_block(self, place: int) -> bool:
        """Whether a rule stands above row `place`."""
        return self.blocks and place > 0 and bool(self.rows[place][0])


def to_markdown(grid: Grid) -> str:
    lines = [_pipes(grid.columns), _pipes(["---", *("---:" for _ in grid.columns[1:])])]
    lines += [_pipes(row) for row in grid.rows]
    head = [text for text in (f"**{grid.title}**" if grid.title else "", grid.note) if text]
    return "\n\n".join([*head, "\n".join(lines)]) + "\n"


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
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(grid: Grid) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(plain, grid.columns))
    writer.writerows([plain(text) for text in row] for row in grid.rows)
    return file.getvalue()


def plain(text: str) -> str:
    """A cell without its dress."""
    return text.replace("`", "")


def latex_text(text: str) -> str:
    """Text with LaTeX's own characters escaped, backticks set in `texttt`."""
    pieces = re.split(r"`([^`]*)`", text)
    escaped = ["".join(_LATEX.get(mark, mark) for mark in piece) for piece in pieces]
    return "".join(f"\\texttt{{{piece}}}" if place % 2 else piece for place, piece in enumerate(escaped))


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"
