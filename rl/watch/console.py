"""A step as one line of a table, for a person who looks at a terminal or at a log file of 200 columns.

Columns bear their names in a heading, which comes again after `REPEAT` steps and when other columns are there; a line
with a name at each figure would be twice as long. A figure that is unknown is a dash; `latency` is the judge's, in
seconds, `const` the share of groups of equal scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.metrics import tokens_per_second

REPEAT = 20
_GAP, _NARROWEST = " ", 6


def cells(metrics: Mapping[str, Any], steps: int, seconds_left: float | None) -> dict[str, str]:
    """The figures of a step as they are shown, by the names of their columns.

    steps: of the whole run. seconds_left: until its end.
    """
    rates = tokens_per_second(metrics)
    gap = metrics.get("probe_gap")
    return {
        "step": f"{metrics['step']}/{steps}".rjust(2 * len(str(steps)) + 1),
        "reward": _shown(metrics["reward"], ".3f"),
        **{name: _shown(value, ".2f") for name, value in metrics["parts"].items()},
        "kl": _shown(metrics["kl"], ".4f"),
        "entropy": _shown(metrics["entropy"], ".3f"),
        "const": _shown(metrics["constant_share"], ".2f"),
        "grad": _shown(metrics["grad_norm"], ".3f"),
        **({} if gap is None else {"probe": format(gap, ".1e")}),
        "tokens": _shown(metrics["answer_tokens"], ".0f"),
        "failed": f"{metrics['failed']}/{metrics['rollouts']}",
        "latency": _seconds((metrics.get("judge") or {}).get("latency_mean")),
        **{f"{phase} s": _seconds(value) for phase, value in metrics["seconds"].items()},
        "sampled/s": _short(rates["sampled"]),
        "trained/s": _short(rates["trained"]),
        "left": "-" if seconds_left is None else duration(seconds_left),
    }


class Table:
    """Lays steps out below each other."""

    def __init__(self) -> None:
        self._widths: dict[str, int] = {}
        self._rows = 0

    def lines(self, cells: Mapping[str, str]) -> str:
        """The step's line, after a heading where one is due."""
        heading = self._rows % REPEAT == 0 or self._widths.keys() != cells.keys()
        if heading:
            self._rows = 0
            self._widths = {name: max(len(name), len(text), _NARROWEST) for name, text in cells.items()}
        self._rows += 1
        row = _GAP.join(text.rjust(self._widths[name]) for name, text in cells.items())
        return f"{_GAP.join(name.rjust(width) for name, width in self._widths.items())}\n{row}" if heading else row


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


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _short(value: float | None) -> str:
    """Three digits with a prefix: 812, 14.2k, 1.03M."""
    if value is None:
        return "-"
    for size, prefix in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"
