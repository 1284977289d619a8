"""The figures of a step: what is averaged, what is only counted, how long its phases took."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from emu3.report.console import settled_median
from rl.reward.scores import Outcome, Score, Unparsable


@dataclass(frozen=True)
class Judged:
    """One rollout for the log: kind of edit, number of tokens, what the judge said."""

    task: str | None
    tokens: int
    outcome: Outcome


def reward_metrics(judged: Sequence[Judged]) -> dict[str, Any]:
    """Means over the rollouts that have a score, None where none has; failures are counted, never averaged."""
    scores = [item.outcome for item in judged if isinstance(item.outcome, Score)]
    by_task: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    for item in judged:
        if isinstance(item.outcome, Score):
            by_task[item.task or "none"].append(item.outcome.value)
            for name, value in item.outcome.parts.items():
                parts[name].append(value)
    unparsable = sum(isinstance(item.outcome, Unparsable) for item in judged)
    return {
        "reward": _mean([score.value for score in scores]),
        "reward_by_task": {task: _mean(values) for task, values in sorted(by_task.items())},
        "parts": {name: _mean(values) for name, values in parts.items()},
        "rollouts": len(judged),
        "failed": len(judged) - len(scores),
        "unparsable": unparsable,
        "unavailable": len(judged) - len(scores) - unparsable,
        "answer_tokens": _mean([item.tokens for item in judged]),
        "sampled_tokens": sum(item.tokens for item in judged),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class Timer:
    """Seconds per phase of a step. A phase inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = 0.0  # seconds of phases inside the present one

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start, outer, self._inner = time.perf_counter(), self._inner, 0.0
        yield
        passed = time.perf_counter() - start
        self.seconds[name] += passed - self._inner
        self._inner = outer + passed


def tokens_per_second(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Rates of a step's line: tokens of answers `sampled`, scored tokens `trained` on, over all ranks, by the seconds
    of those phases on the main one. None where the phase did nothing."""
    rates: dict[str, float | None] = {}
    for name, phase in (("sampled", "sample"), ("trained", "train")):
        tokens, seconds = metrics.get(f"{name}_tokens"), metrics["seconds"].get(phase)
        rates[name] = tokens / seconds if tokens and seconds else None
    return rates


def step_seconds(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Median over the last lines of a run of the seconds of all phases; None before the run has settled.

    Saving is no phase: of a run that saves rarely it is a small part.
    """
    return settled_median([sum(line["seconds"].values()) for line in lines], enough=2)
