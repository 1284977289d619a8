"""Two small drawings as inline SVG, coloured by the page's style sheet so that they follow light and dark.

`interval_bar` is a mean with its interval on a fixed scale, `line_chart` a training curve: the raw figures faint, a
running mean over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from baselines.cells import Interval

BAR_WIDTH, BAR_HEIGHT = 180, 16
CHART_WIDTH, CHART_HEIGHT = 440, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 28


def interval_bar(mean: float | None, interval: Interval | None, end: float) -> Markup:
    """A bar from 0 to `mean` on the scale 0 to `end`, its interval as a whisker. The text beside it says the same."""
    middle, unit = BAR_HEIGHT / 2, BAR_WIDTH / end
    parts = [f'<rect class="track" x="0" y="{middle - 4}" width="{BAR_WIDTH}" height="8" rx="2"/>']
    if mean is not None:
        parts.append(
            f'<rect class="bar" x="0" y="{middle - 4}" width="{max(0.0, mean) * unit:.1f}" height="8" rx="2"/>'
        )
        parts.append(f'<circle class="mean" cx="{mean * unit:.1f}" cy="{middle}" r="3.2"/>')
    if interval is not None:
        low, high = (f"{bound * unit:.1f}" for bound in interval)
        cap = f"{middle - 5}v10"
        parts.append(f'<path class="whisker" d="M{low} {cap}M{low} {middle}H{high}M{high} {cap}"/>')
    return Markup(
        f'<svg class="interval" viewBox="-1 0 {BAR_WIDTH + 2} {BAR_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'
    )


def line_chart(name: str, steps: Sequence[float], values: Sequence[float]) -> Markup:
    """A curve over training steps. `steps` ascend; both are finite and of one length, at least 1."""
    y_ticks = nice_ticks(min(values), max(values))
    x_ticks = [tick for tick in nice_ticks(steps[0], steps[-1]) if steps[0] <= tick <= steps[-1]]
    low, high = min(y_ticks[0], *values), max(y_ticks[-1], *values)
    x_span, y_span = (steps[-1] - steps[0]) or 1.0, (high - low) or 1.0

    def x(step: float) -> float:
        return _LEFT + (CHART_WIDTH - _LEFT - _RIGHT) * (step - steps[0]) / x_span

    def y(value: float) -> float:
        return _TOP + (CHART_HEIGHT - _TOP - _BOTTOM) * (high - value) / y_span

    def path(heights: Sequence[float]) -> str:
        return "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in zip(steps, heights, strict=True))

    grid = "".join(
        f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{CHART_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in y_ticks
    ) + "".join(
        f'<text x="{x(tick):.1f}" y="{CHART_HEIGHT - 8}" text-anchor="middle">{tick:g}</text>' for tick in x_ticks
    )
    smooth = running_mean(values)
    label = f"{name} over steps {steps[0]:g} to {steps[-1]:g}: from {smooth[0]:.3g} to {smooth[-1]:.3g}"
    return Markup(
        f'<svg class="chart" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{grid}<path class="raw" d="{path(values)}"/><path class="smooth" d="{path(smooth)}"/></svg>'
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over about a twelfth of the curve, over fewer neighbours at its ends."""
    half = len(values) // 24
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return ((sums[last] - sums[first]) / (last - first)).tolist()


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that span `low` to `high`; steps are 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
