"""How a figure is printed: one spelling for the tables, the report and the headline.

A score of a judge from 0 to 10 has two decimals, as published. Other metrics live on other scales and have four
significant digits. An unknown figure is a dash, never a zero.
"""

from __future__ import annotations

from baselines.results.records import VIESCORE

Interval = tuple[float, float]

UNKNOWN = "–"


def number(value: float, metric: str = VIESCORE, sign: str = "") -> str:
    """`3.10`; with sign "+" also a positive number shows its sign."""
    if metric == VIESCORE:
        return fixed(value, 2, sign)
    if abs(value) >= 1000:
        return f"{value:{sign}.0f}"
    # "#" keeps trailing zeros, so that the figures of a column end alike.
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
