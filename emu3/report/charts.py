"""Drawings of a run over its steps as inline SVG; the page's style sheet colours them, for light and for dark.

`line_chart` is one curve, the raw values faint and a running mean over them; `lines_chart` the running means of
several; `stacked_chart` parts of a sum. Whatever the number of steps, a curve has a few hundred points: of the steps
that fall on one place the smallest and the largest value are kept, so that no spike is lost. The axis of steps is named
in the drawing, the unit of the values stands in the heading above it (`emu3.report.run_page.Panel`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape


@dataclass(frozen=True)
class _Size:
    """Of a drawing and of the margins around its plot, in units of the drawing."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


_LARGE, _SMALL = _Size(440, 238, 46, 10, 10, 54), _Size(200, 132, 30, 6, 8, 44)
HEIGHT = _LARGE.height
COLOURS = 6
"""Curves of one chart have the classes `c0` to `c5`, in their order, then again."""
_PLACES = 200
_SMOOTHED = 24
"""Points from which on the running mean is not the curve itself."""
_SPARSE = 4
"""A curve with so many times fewer points than another has them marked, up to `_MARKS`."""
_MARKS = 50


@dataclass(frozen=True)
class Curve:
    """One value over steps. Steps ascend, values are finite, both have the same length, at least 1. raw: among others,
    too, its values are drawn faint behind their running mean."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    raw: bool = False


class _Frame:
    """From steps and values to places in the drawing, and the lines that say where they are."""

    def __init__(self, steps: tuple[float, float], bounds: tuple[float, float], size: _Size = _LARGE) -> None:
        self.size = size
        self.y_ticks = nice_ticks(*bounds)
        x_ticks = nice_ticks(*steps, count=4 if size is _LARGE else 2)
        self.x_ticks = [tick for tick in x_ticks if steps[0] <= tick <= steps[1] and tick == int(tick)]
        self.low, self.high = min(self.y_ticks[0], bounds[0]), max(self.y_ticks[-1], bounds[1])
        self.first, self.x_span, self.y_span = steps[0], (steps[1] - steps[0]) or 1.0, (self.high - self.low) or 1.0

    def x(self, step: float) -> float:
        size = self.size
        return size.left + (size.width - size.left - size.right) * (step - self.first) / self.x_span

    def y(self, value: float) -> float:
        size = self.size
        return size.top + (size.height - size.top - size.bottom) * (self.high - value) / self.y_span

    def points(self, steps: Sequence[float], values: Sequence[float]) -> str:
        places = [f"{self.x(step):.1f} {self.y(value):.1f}" for step, value in zip(steps, values, strict=True)]
        return "L".join(places if len(places) > 1 else places * 2)  # a line to itself is a dot, a place alone nothing

    def svg(self, label: str, drawn: str) -> Markup:
        size, bottom = self.size, self.size.height - self.size.bottom
        grid = "".join(
            f'<path class="grid" d="M{size.left} {self.y(tick):.1f}H{size.width - size.right}"/>'
            f'<text x="{size.left - 7}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{_tick(tick)}</text>'
            for tick in self.y_ticks
        ) + "".join(
            f'<text x="{self.x(tick):.1f}" y="{bottom + 19}" text-anchor="middle">{_tick(tick)}</text>'
            for tick in self.x_ticks
        )
        middle = (size.left + size.width - size.right) / 2
        return Markup(
            f'<svg class="chart" viewBox="0 0 {size.width} {size.height}" role="img" aria-label="{escape(label)}">'
            f'{grid}<text class="axis" x="{middle:.0f}" y="{bottom + 37}" text-anchor="middle">step</text>{drawn}</svg>'
        )


def line_chart(
    name: str,
    steps: Sequence[float],
    values: Sequence[float],
    exact: bool = False,
    bounds: tuple[float, float] | None = None,
    small: bool = False,
) -> Markup:
    """One curve; steps and values as in a `Curve`. exact: of values without noise, which a mean would bend. bounds: of
    the axis, which values outside widen. small: a drawing of a third of the size, with the running mean alone."""
    low, high = bounds or (values[0], values[0])
    frame = _Frame((steps[0], steps[-1]), (min(low, *values), max(high, *values)), _SMALL if small else _LARGE)
    smooth = values if exact else running_mean(values)
    noisy = not (exact or small) and len(values) >= _SMOOTHED
    raw = f'<path class="raw" d="M{frame.points(*_thin(steps, values))}"/>' if noisy else ""
    first, last = (values[0], values[-1]) if exact else first_and_last(values)
    return frame.svg(
        f"{name} over steps {steps[0]:g} to {steps[-1]:g}: from {first:.3g} to {last:.3g}",
        f'{raw}<path class="smooth" d="M{frame.points(*_thin(steps, smooth))}"/>',
    )


def lines_chart(name: str, curves: Sequence[Curve]) -> Markup:
    """The running means of curves, at least one."""
    smooth = [running_mean(curve.values) for curve in curves]
    drawn = [*smooth, *(curve.values for curve in curves if curve.raw)]
    frame = _Frame(
        (min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves)),
        (min(map(min, drawn)), max(map(max, drawn))),
    )
    ends = ", ".join(f"{curve.name} {values[-1]:.3g}" for curve, values in zip(curves, smooth, strict=True))
    paths = [f'<path class="raw" d="M{frame.points(*_thin(c.steps, c.values))}"/>' for c in curves if c.raw]
    for place, (curve, values) in enumerate(zip(curves, smooth, strict=True)):
        colour = f"c{place % COLOURS}"
        paths.append(f'<path class="line {colour}" d="M{frame.points(*_thin(curve.steps, values))}"/>')
        if len(curve.steps) <= min(_MARKS, max(len(other.steps) for other in curves) // _SPARSE):
            dots = "".join(f"M{frame.x(x):.1f} {frame.y(y):.1f}h0" for x, y in zip(curve.steps, values, strict=True))
            paths.append(f'<path class="marks {colour}" d="{dots}"/>')
    return frame.svg(f"{name}, at last: {ends}", "".join(paths))


def stacked_chart(name: str, steps: Sequence[float], parts: Mapping[str, Sequence[float]]) -> Markup:
    """Parts of a sum, the first at the bottom, each at least 0 and of the length of `steps`; means of what falls on
    one place."""
    count = min(len(steps), _PLACES)
    places = [float(cell.mean()) for cell in np.array_split(np.asarray(steps), count)]
    cells = [np.array_split(np.asarray(values), count) for values in parts.values()]
    heights = np.array([[cell.mean() for cell in of_part] for of_part in cells])
    tops = np.vstack([np.zeros(count), np.cumsum(heights, axis=0)])
    frame = _Frame((steps[0], steps[-1]), (0.0, float(tops[-1].max()) or 1.0))
    areas = (
        f'<path class="area c{place % COLOURS}" d="M{frame.points(places, tops[place + 1].tolist())}'
        f'L{frame.points(places[::-1], tops[place][::-1].tolist())}Z"/>'
        for place in range(len(parts))
    )
    ends = ", ".join(f"{part} {height:.3g}" for part, height in zip(parts, heights[:, -1], strict=True))
    return frame.svg(f"{name}, at last: {ends}", "".join(areas))


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over about a twelfth of the curve, over fewer neighbours at its ends."""
    half = len(values) // _SMOOTHED
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return ((sums[last] - sums[first]) / (last - first)).tolist()


def first_and_last(values: Sequence[float]) -> tuple[float, float]:
    """Where a noisy curve began and ended: the means of its first and last tenth, of 5 values at least where there are
    10, of half of them where there are fewer."""
    count = max(1, min(len(values) // 2, max(5, len(values) // 10)))
    return sum(values[:count]) / count, sum(values[-count:]) / count


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that span `low` to `high`; steps are 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e7 else f"{value:g}"


def _thin(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most two points for each of `_PLACES` places, the smallest and the largest value there, and both ends."""
    if len(steps) <= 2 * _PLACES:
        return list(steps), list(values)
    array = np.asarray(values)
    kept = {0, len(values) - 1}
    for cell in np.array_split(np.arange(len(values)), _PLACES):
        kept |= {int(cell[array[cell].argmin()]), int(cell[array[cell].argmax()])}
    order = sorted(kept)
    return [steps[index] for index in order], [values[index] for index in order]
