"""A mean with its interval on a fixed scale as inline SVG, coloured by the page's style sheet so that it follows light
and dark. Training curves are `emu3.report.charts`'.
"""

from __future__ import annotations

from markupsafe import Markup

from baselines.tables.cells import Interval

BAR_WIDTH, BAR_HEIGHT = 180, 16


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
