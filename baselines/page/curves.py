"""Training curves from metrics.jsonl: one JSON object per step, as a run appends them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from emu3.errors import UserError

SHOWN = {
    "reward": "Reward",
    "kl": "KL to the reference",
    "entropy": "Entropy",
    "answer_tokens": "Answer length in tokens",
}
"""Metrics that are drawn, with their titles, in this order."""


@dataclass(frozen=True)
class Curve:
    """One metric over steps; both lists are finite, steps ascend."""

    title: str
    steps: list[float]
    values: list[float]


def read_curves(path: Path) -> list[Curve]:
    """The curves of a metrics file that has any of `SHOWN`.

    A step that occurs twice (a run resumed before the end of its log) counts as it was last. A last line without
    an end is a run that is still writing, or was cut off, and is left out. Raises `UserError` for any other line
    that is no JSON object.
    """
    by_step: dict[float, dict[str, float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            by_step[float(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}: not a JSON object with a step") from None
    curves = []
    for key, title in SHOWN.items():
        points = [(step, by_step[step][key]) for step in sorted(by_step) if _is_number(by_step[step].get(key))]
        if points:
            curves.append(Curve(title, [step for step, _ in points], [float(value) for _, value in points]))
    return curves


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
