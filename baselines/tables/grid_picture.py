"""A grid as a picture: what the Markdown says, for a slide or a README, with nothing left out."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from baselines.tables.grid import Grid, plain
from emu3.files import whole_file

INK, SOFT, LINE = "#1b1d21", "#5c636e", "#c9ced6"
_POINTS, _ROW, _PAD = 9, 0.25, 0.18
# Inches per character of the sans-serif face at 9 points, wide enough for digits and capitals.
_CHARACTER = 0.073


def draw(grid: Grid, path: Path) -> Path:
    """Write `grid` as a PNG of its natural size; returns `path`. Raises `ValueError` for a grid without rows."""
    if not grid.rows:
        raise ValueError("a grid without rows has no picture")
    cells = [[plain(text) for text in row] for row in (grid.columns, *grid.rows)]
    widths = [max(len(row[place]) for row in cells) * _CHARACTER + 2 * _PAD for place in range(len(grid.columns))]
    width = sum(widths)
    wrapped = textwrap.wrap(grid.note, max(40, int(width / (_CHARACTER * 0.85))))
    heights = [0.4 if grid.title else 0.1, _ROW * len(cells), _ROW * len(wrapped) + 0.15]
    height = sum(heights)
    with mpl.rc_context({"font.size": _POINTS, "text.color": INK, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        if grid.title:
            axes.text(_PAD, 0.22, grid.title, weight="bold", va="center", fontsize=_POINTS + 2)
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


def _write_row(axes: mpl.axes.Axes, row: list[str], widths: list[float], middle: float, *, heading: bool) -> None:
    """Names to the left, figures to the right."""
    left = 0.0
    for place, (text, width) in enumerate(zip(row, widths, strict=True)):
        x, side = (left + _PAD, "left") if place == 0 else (left + width - _PAD, "right")
        axes.text(x, middle, text, ha=side, va="center", color=SOFT if heading else INK, parse_math=False)
        left += width
