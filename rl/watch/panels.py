"""From the lines of a run to the charts of its report.

A figure that never moved (no failures, a grid of one size) gets a sentence instead of an empty chart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rl.metrics import tokens_per_second
from rl.watch.charts import Curve, line_chart, lines_chart, running_mean, stacked_chart

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """A chart with its heading. legend: names of its curves in the order of their colours, if it has several."""

    title: str
    note: str
    chart: Markup
    legend: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """What is read from a line; None where the line has it not."""

    title: str
    note: str
    of: Callable[[Line], float | None]


def _judge(line: Line, name: str) -> float | None:
    figure: float | None = (line.get("judge") or {}).get(name)
    return figure


REWARD = Figure("Reward", "mean over the rollouts with a score", lambda line: line["reward"])
LEARNING = (
    Figure("KL to the start", "nats per token", lambda line: line["kl"]),
    Figure("Entropy", "nats per token", lambda line: line["entropy"]),
    Figure("Groups of equal scores", "share", lambda line: line["constant_share"]),
    Figure("Gradient norm", "before clipping", lambda line: line["grad_norm"]),
    Figure("Answer length", "tokens", lambda line: line["answer_tokens"]),
    Figure("Sampler against trainer", "mean distance in nats", lambda line: line["logprob_gap"]),
    Figure("Sampler's new weights", "distance on a probe, nats", lambda line: line.get("probe_gap")),
    Figure("Tokens outside the clip", "share", lambda line: line["clip_share"]),
)
JUDGING = (
    Figure("Rollouts without a score", "share", lambda line: line["failed"] / line["rollouts"]),
    Figure("Latency of the judge", "mean seconds per question", lambda line: _judge(line, "latency_mean")),
    Figure("Judge's time hidden by sampling", "share", lambda line: _judge(line, "hidden_share")),
)


def panels(lines: Sequence[Line], figures: Iterable[Figure]) -> list[Panel]:
    """A chart of each figure that moved."""
    return [
        Panel(figure.title, figure.note, line_chart(figure.title, curve.steps, curve.values))
        for figure, curve in _curves(lines, figures)
        if min(curve.values) < max(curve.values)
    ]


def unmoved(lines: Sequence[Line], figures: Iterable[Figure]) -> dict[str, float]:
    """The value of each figure that is the same in all steps that have it."""
    return {
        figure.title: curve.values[0]
        for figure, curve in _curves(lines, figures)
        if min(curve.values) == max(curve.values)
    }


def small_panels(lines: Sequence[Line], key: str) -> list[Panel]:
    """A chart for each name in the dict `key` of the lines, all on one scale, with where its running mean began and
    is now."""
    names = dict.fromkeys(name for line in lines for name in line[key])
    figures = [Figure(name, "", lambda line, name=name: line[key].get(name)) for name in names]  # type: ignore[misc]
    curves = [curve for _, curve in _curves(lines, figures)]
    means = [running_mean(curve.values) for curve in curves]
    bounds = min(map(min, means), default=0.0), max(map(max, means), default=0.0)
    return [
        Panel(curve.name.replace("_", " "), f"{mean[0]:.2f} → {mean[-1]:.2f}", lines_chart(curve.name, [curve], bounds))
        for curve, mean in zip(curves, means, strict=True)
    ]


def work_panels(lines: Sequence[Line]) -> list[Panel]:
    """Seconds by phase, and tokens per second."""
    phases = list(dict.fromkeys(phase for line in lines for phase in line["seconds"]))
    seconds = {phase: [line["seconds"].get(phase, 0.0) for line in lines] for phase in phases}
    stacked = stacked_chart("Seconds per step", [line["step"] for line in lines], seconds)
    found = [Panel("Seconds per step", "by phase; judge: waiting for it", stacked, phases)]
    rates = [{"step": line["step"], **tokens_per_second(line)} for line in lines]
    figures = [Figure(name, "", lambda rate, name=name: rate[name]) for name in ("sampled", "trained")]  # type: ignore[misc]
    curves = [curve for _, curve in _curves(rates, figures)]
    if curves:
        chart = lines_chart("Tokens per second", curves)
        found.append(Panel("Tokens per second", "over all ranks, in that phase", chart, [c.name for c in curves]))
    return found


def _curves(lines: Sequence[Line], figures: Iterable[Figure]) -> list[tuple[Figure, Curve]]:
    """The figures that any line has, over the steps that have them."""
    found = []
    for figure in figures:
        points = [(line["step"], value) for line in lines if (value := figure.of(line)) is not None]
        if points:
            found.append((figure, Curve(figure.title, [step for step, _ in points], [value for _, value in points])))
    return found
