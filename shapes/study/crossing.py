"""The map: where reinforcement learning on complex prompts is worth more than their targets, and where it is not.

All lines begin at one model, SFT (S), and are scored on the held-out complex edits of the quickstart: more SFT on
simple and complex edits, whose targets have more and more unrelated changes; RL on the same prompts, which reads no
targets, so that over their noise it is one run; the same two over the number of pairs; and RL under a judge with more
and more noise. Where two lines cross is found by linear interpolation between the points of their mean difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from baselines.figure import CANDIDATE, INK, REFERENCE, SOFT, STYLE
from baselines.page.run_folder import SCALE_END
from baselines.tables.statistics import Estimate, Interval, Sampled, estimate, percentiles
from emu3.files import whole_file
from shapes.study import claims
from shapes.study.claims import Results
from shapes.study.rows import AXES, LINES, Row

COMPLEX = "held_out_complex"
COLOURS = {"rl": CANDIDATE, "sft": REFERENCE, "start": SOFT}
UNITS = {"target noise": "changes", "complex pairs": "pairs", "judge noise": "points of noise"}
COMPARED = {"target noise": ("rl", "sft"), "complex pairs": ("rl", "sft"), "judge noise": ("rl", "start")}
"""On each axis the two lines whose crossing is asked for."""


@dataclass(frozen=True)
class Line:
    """Scores over an axis. runs: at each place the held-out complex scores by seed, None for a failure. known:
    estimates that were asked for before, by their resamples; table, summary and image need the same."""

    name: str
    places: tuple[float, ...]
    runs: tuple[Mapping[int, Sequence[float | None]], ...]
    known: dict[int, list[Estimate]] = field(default_factory=dict, compare=False, repr=False)

    def estimates(self, resamples: int) -> list[Estimate]:
        if resamples not in self.known:
            self.known[resamples] = [
                estimate([[_sampled(seed, run)] for seed, run in runs.items()], resamples=resamples)
                for runs in self.runs
            ]
        return self.known[resamples]


@dataclass(frozen=True)
class Crossing:
    """Where the difference of two lines, `more` less `less`, changes its sign. place is None where it does not; `text`
    says what is so instead. interval: over seeds and samples; an end beyond the axis is its end. differences: at each
    place."""

    axis: str
    more: str
    less: str
    place: float | None
    interval: Interval | None
    text: str
    differences: list[tuple[float, Estimate]]


def lines_of(results: Results, rows: Mapping[str, Row], here: float, pairs: float) -> dict[str, dict[str, Line]]:
    """The lines by axis and name, of what there is. here, pairs: the quickstart's target noise and number of pairs,
    where the axes meet."""

    def runs(name: str) -> Mapping[int, Sequence[float | None]]:
        return {seed: result.scores[COMPLEX] for (row, seed), result in results.items() if row == name}

    points: dict[tuple[str, str], dict[float, Mapping[int, Sequence[float | None]]]] = {}
    for name, row in rows.items():
        if row.place is not None and runs(name):
            axis, place, line = row.place
            points.setdefault((axis, line), {})[place] = runs(name)
    start, rl = points.pop(("target noise", "start"), {}), points.pop(("target noise", "rl"), {})
    at_home = points.get(("target noise", "sft"), {}).get(here)
    joint = {"complex pairs": pairs, "judge noise": 0.0}
    for axis, place in joint.items():
        if rl and (axis, "rl") in points:
            points[axis, "rl"][place] = rl[0.0]
        if at_home and (axis, "sft") in points:
            points[axis, "sft"][place] = at_home
    found: dict[str, dict[str, Line]] = {}
    for axis in AXES:
        members: dict[str, dict[float, Mapping[int, Sequence[float | None]]]] = {}
        places = sorted({place for (name, _), line in points.items() if name == axis for place in line})
        if not places:
            continue
        level = {"start": start.get(0.0), "rl": rl.get(0.0) if axis == "target noise" else None}
        level["sft"] = at_home if axis == "judge noise" else None
        for name in LINES:
            known = points.get((axis, name)) or {place: run for place in places if (run := level[name])}
            if known:
                members[name] = known
        kept, seeds = _comparable(members.values())
        for name, known in members.items():
            order = tuple(sorted(kept & known.keys()))
            runs_of = tuple({seed: known[place][seed] for seed in seeds} for place in order)
            if order:
                found.setdefault(axis, {})[name] = Line(name, order, runs_of)
    return found


def _comparable(lines: Iterable[Mapping[float, Mapping[int, object]]]) -> tuple[set[float], list[int]]:
    """Places and seeds of an axis, such that all places have all of the seeds: other seeds would look like a slope.
    Those that leave most points, of at least two places."""
    at: dict[float, set[int]] = {}
    for line in lines:
        for place, runs in line.items():
            at[place] = at.get(place, {*runs}) & {*runs}
    order = sorted(at, key=lambda place: -len(at[place]))
    ways = [(order[:n], set.intersection(*(at[place] for place in order[:n]))) for n in range(1, len(order) + 1)]
    places, seeds = max(ways, key=lambda way: (min(len(way[0]), 2) * bool(way[1]), len(way[0]) * len(way[1])))
    return set(places), sorted(seeds)


def line_seeds(members: Mapping[str, Line]) -> list[int]:
    """Those of an axis."""
    return sorted({seed for line in members.values() for runs in line.runs for seed in runs})


def named(seeds: Sequence[int]) -> str:
    """`seeds 10, 11`."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def crossings(lines: Mapping[str, Mapping[str, Line]], resamples: int) -> list[Crossing]:
    """One for each axis that has both of the lines compared."""
    found = []
    for axis, (more, less) in COMPARED.items():
        if more in lines.get(axis, {}) and less in lines[axis]:
            found.append(crossing(axis, lines[axis][more], lines[axis][less], resamples))
    return found


def differences_of(more: Line, less: Line, resamples: int) -> tuple[np.ndarray, list[tuple[float, Estimate]]]:
    """`more` less `less` by seed, place and sample, (S, X, N) with NaN where one of the two failed, and each place with
    its mean; at the places and on the seeds that both have."""
    places = [place for place in more.places if place in less.places]
    at = [(more.runs[more.places.index(place)], less.runs[less.places.index(place)]) for place in places]
    seeds = sorted(set.intersection(*({*a} & {*b} for a, b in at))) if at else []
    size = min((len(run[one]) for a, b in at for run in (a, b) for one in seeds), default=0)
    values_S_X_N = np.array(
        [[_numbers(a[one], size) - _numbers(b[one], size) for a, b in at] for one in seeds], dtype=np.float64
    ).reshape(len(seeds), len(places), size)
    differences = [
        (
            place,
            estimate(
                [[_sampled(one, list(row[x]))] for one, row in zip(seeds, values_S_X_N, strict=True)],
                resamples=resamples,
            ),
        )
        for x, place in enumerate(places)
    ]
    return values_S_X_N, differences


def crossing(axis: str, more: Line, less: Line, resamples: int, seed: int = 0) -> Crossing:
    """Of two lines, at the places and on the seeds that both have."""
    values_S_X_N, differences = differences_of(more, less, resamples)
    places = [place for place, _ in differences]
    seeds, _, size = values_S_X_N.shape
    if not seeds or not size:
        return Crossing(axis, more.name, less.name, None, None, "not run", differences)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(min(resamples, 2000)):
        chosen = random.integers(0, seeds, (seeds,))
        rows = np.array([values_S_X_N[one][:, random.integers(0, size, size)] for one in chosen])
        drawn.append(_change(places, np.nanmean(np.nanmean(rows, axis=2), axis=0)))
    means = np.nanmean(np.nanmean(values_S_X_N, axis=2), axis=0)
    place = _change(places, means)
    crosses = bool(np.isfinite(place))
    side = "above" if (means[-1] if crosses else means.mean()) > 0 else "below"
    if not crosses:
        where = f"from {places[0]:g} to {places[-1]:g}" if len(places) > 1 else f"at {places[0]:g}"
        text = f"{LINES[more.name]} is {side} {LINES[less.name]} {where} {UNITS.get(axis, '')}"
        return Crossing(axis, more.name, less.name, None, None, text, differences)
    text = f"{LINES[more.name]} is {side} {LINES[less.name]} beyond {shown(place)} {UNITS.get(axis, '')}"
    return Crossing(
        axis, more.name, less.name, float(place), percentiles(np.clip(drawn, places[0], places[-1])), text, differences
    )


def shown(place: float) -> str:
    """`0.62`, `1500`."""
    return f"{place:.2g}" if place < 100 else f"{round(place, -2):.0f}"


def _change(places: Sequence[float], means: np.ndarray) -> float:
    """Where the means change their sign first; beyond the end that they tend to where they do not."""
    for x in range(len(places) - 1):
        a, b = means[x], means[x + 1]
        if a == 0:
            return places[x]
        if (a < 0) != (b < 0):
            return places[x] + (places[x + 1] - places[x]) * a / (a - b)
    # Differences that rise and are above 0 everywhere would have crossed before the first place.
    rises = len(means) > 1 and means[-1] > means[0]
    return -np.inf if (means[0] > 0) == rises else np.inf


def _numbers(values: Sequence[float | None], size: int) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values[:size]], dtype=np.float64)


def _sampled(seed: int, values: Sequence[float | None]) -> Sampled:
    """Each seed has held-out edits of its own."""
    kept = [(value, (seed, place)) for place, value in enumerate(values) if value is not None and value == value]
    return Sampled(np.array([value for value, _ in kept], dtype=np.float64), [cluster for _, cluster in kept])


def levels(lines: Mapping[str, Line], more: str, less: str, resamples: int) -> str:
    """At which places of an axis one line lies above the other with its interval and every seed, and where below."""
    if more not in lines or less not in lines:
        return ""
    found: dict[str, list[str]] = {claims.HOLDS: [], claims.DOES_NOT: [], claims.UNDECIDED: []}
    for place, difference in differences_of(lines[more], lines[less], resamples)[1]:
        found[claims.verdict_of(difference)].append(f"{place:g}")
    words = {claims.HOLDS: "above", claims.DOES_NOT: "below", claims.UNDECIDED: "undecided"}
    told = [f"{words[verdict]} at {', '.join(places)}" for verdict, places in found.items() if places]
    return f"{LINES[more]} against {LINES[less]}: {'; '.join(told)}"


def summary(lines: Mapping[str, Mapping[str, Line]], found: Sequence[Crossing], resamples: int) -> dict[str, Any]:
    """The map as JSON values."""
    return {
        axis: {
            "axis": AXES[axis],
            "lines": {
                name: [
                    {"at": place, "mean": one.mean, "ci95": one.ci95, "nested": one.nested, "by_seed": list(one.runs)}
                    for place, one in zip(line.places, line.estimates(resamples), strict=True)
                ]
                for name, line in members.items()
            },
            "crossing": next(
                (
                    {"lines": [one.more, one.less], "at": one.place, "interval": one.interval, "text": one.text}
                    for one in found
                    if one.axis == axis
                ),
                None,
            ),
        }
        for axis, members in lines.items()
    }


def draw(
    lines: Mapping[str, Mapping[str, Line]], found: Sequence[Crossing], path: Path, here: float, resamples: int
) -> Path:
    """Write the map as a PNG, a panel for each axis; returns `path`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    crossed = {one.axis: one for one in found}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5 * len(lines), 4.2), dpi=160, facecolor="white", layout="constrained")
        axes = figure.subplots(1, len(lines), squeeze=False, sharey=True)[0]
        for ax, (axis, members) in zip(axes, lines.items(), strict=True):
            heights = _apart({name: line.estimates(resamples)[-1].mean or 0.0 for name, line in members.items()})
            for name, line in members.items():
                estimates = line.estimates(resamples)
                means = [one.mean if one.mean is not None else np.nan for one in estimates]
                style = {"marker": "o", "markersize": 4} if name != "start" else {"linestyle": ":"}
                ax.plot(line.places, means, color=COLOURS[name], linewidth=2, **style)
                ends = [one.nested or one.ci95 or (mean, mean) for one, mean in zip(estimates, means, strict=True)]
                low, high = zip(*ends, strict=True)
                ax.fill_between(line.places, low, high, color=COLOURS[name], alpha=0.13, linewidth=0)
                ax.annotate(
                    LINES[name], (line.places[-1], heights[name]), (6, 0), "data", "offset points",
                    color=COLOURS[name], va="center", annotation_clip=False,
                )  # fmt: skip
            one = crossed.get(axis)
            if one is not None and one.place is not None:
                ax.axvline(one.place, color=INK, linewidth=1)
                if one.interval:
                    ax.axvspan(*one.interval, color=INK, alpha=0.06, linewidth=0)
            ax.set_title(one.text if one is not None else axis, fontsize=9)
            ax.set_xlabel(f"{AXES[axis]}\n{named(line_seeds(members))}")
            ax.set_xticks(sorted({place for line in members.values() for place in line.places}))
            if axis == "target noise":
                ax.axvline(here, color=SOFT, linewidth=1, linestyle=(0, (1, 3)))
                ax.annotate("the quickstart's noise", (here, 0.97), (4, 0), ("data", "axes fraction"), "offset points",
                            color=SOFT, fontsize=8, va="top")  # fmt: skip
            ax.set_ylim(0, SCALE_END)
        axes[0].set_ylabel("score on complex edits, 0 to 10")
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
    return path


def _apart(ends: Mapping[str, float], least: float = 0.5) -> dict[str, float]:
    """Heights for the names of lines, from the lowest up, none closer to another than `least` points."""
    heights: dict[str, float] = {}
    for name in sorted(ends, key=lambda name: ends[name]):
        heights[name] = max([ends[name], *(height + least for height in heights.values())])
    return heights
