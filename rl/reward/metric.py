"""What scores a picture, and the mean of several such."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from rl.reward.judge import Judge
from rl.reward.outcome import Failure, Outcome, Score, Unavailable


class Metric(Protocol):
    """Scores edited pictures by asking `judge`."""

    @property
    def judge(self) -> Judge: ...

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """target: the data set's own edit of `source`; only a metric that compares with it needs one."""
        ...


class WeightedMean:
    """Weighted mean of metrics, all of one judge: sum of w x / sum of w, so the scale stays 0 to 10.

    metrics: name, weight (more than 0) and metric. Each metric's parts go by `name/part`, its value by `name/value`.
    """

    def __init__(self, metrics: Sequence[tuple[str, float, Metric]]) -> None:
        self.judge = metrics[0][2].judge
        self._metrics = metrics

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """A score, if every metric has one: without one of its parts the sum is unknown, not smaller."""
        outcomes = await asyncio.gather(
            *(metric.score(instruction, source, edited, target) for _, _, metric in self._metrics)
        )
        scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        if len(scores) < len(outcomes):
            return min((outcome for outcome in outcomes if not isinstance(outcome, Score)), key=_hopes)
        total, weights = 0.0, 0.0
        parts: dict[str, float] = {}
        for (name, weight, _), score in zip(self._metrics, scores, strict=True):
            total += weight * score.value
            weights += weight
            parts |= {f"{name}/{part}": value for part, value in {"value": score.value, **score.parts}.items()}
        return Score(total / weights, parts)


def _hopes(failure: Failure) -> int:
    """0 for a refusal, which asking again will not mend; 1 for an outage, which may end; 2 for a useless answer."""
    return (0 if failure.refused else 1) if isinstance(failure, Unavailable) else 2
