"""A step as one line of a table, for a person who looks at a terminal or at a log file of 200 columns.

Columns have their names in a heading, which comes again after `REPEAT` steps and when other columns are there; a line
with a name at each value would be twice as long. A value that is unknown is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

REPEAT = 20
_GAP, _NARROWEST = " ", 6


class Table:
    """Lays steps out below each other."""

    def __init__(self) -> None:
        self._widths: dict[str, int] = {}
        self._rows = 0

    def lines(self, cells: Mapping[str, str]) -> str:
        """The step's line, after a heading where one is due. cells: the texts by the names of their columns."""
        heading = self._rows % REPEAT == 0 or self._widths.keys() != cells.keys()
        if heading:
            self._rows = 0
            self._widths = {name: max(len(name), len(text), _NARROWEST) for name, text in cells.items()}
        self._rows += 1
        row = _GAP.join(text.rjust(self._widths[name]) for name, text in cells.items())
        return f"{_GAP.join(name.rjust(width) for name, width in self._widths.items())}\n{row}" if heading else row


def step_of(step: int, steps: int) -> str:
    """Such as `  7/2000`, of one width for all steps of a run of `steps`."""
    return f"{step}/{steps}".rjust(2 * len(str(steps)) + 1)


def shown(value: float | None, form: str) -> str:
    """The value in a format such as `.3f`."""
    return "-" if value is None else format(value, form)


def seconds(value: float | None) -> str:
    """Hundredths below ten seconds, whole seconds above."""
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def short(value: float | None) -> str:
    """Three digits with a prefix: 812, 14.2k, 1.03M."""
    if value is None:
        return "-"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Such as `0.55 s`, `45 s`, `12 min`, `3 h 20`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 9.5:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 36 * 60:
        return f"{minutes // 60} h {minutes % 60:02d}"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def settled_median(values: Sequence[float], enough: int) -> float | None:
    """Median of the last 50 values of a run, one per line, without its first: that has loaded and compiled, and says
    nothing about the others. None while there are fewer than `enough`."""
    recent = values[1:][-50:]
    return median(recent) if len(recent) >= enough else None
