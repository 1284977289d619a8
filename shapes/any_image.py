"""Scores for any image, from pixel statistics. This is not a judgement of the edit: the instruction is not read.

It lets the whole path (rollouts, reward, GRPO step, evaluation, report) run on photographs where no vision-language
model is at hand. Its scores say nothing about the quality of a model, and each reason begins with `NOTICE`. The parts
stand where VIEScore has its own:
- edit success: how much changed, 10 from `ENOUGH_CHANGE` on; an unchanged image has 0;
- overedit: how little changed beyond that, 0 at `MOST_CHANGE`;
- naturalness and no artifacts, one number: how little a pixel differs from its neighbours, 0 at `MOST_GRAIN`;
- agreement with an edit that is taken as right: how little the two differ, 0 from `ENOUGH_CHANGE` on.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from shapes.verifier import Verdict

NOTICE = "not a judgement of the edit"
ENOUGH_CHANGE, MOST_CHANGE = 0.05, 0.5  # mean absolute difference of the channels, 1 is black against white
MOST_GRAIN = 0.15  # mean absolute difference of brightness to the mean of the four neighbours, likewise


def score_edit(instruction: str, source: Image.Image, edited: Image.Image) -> Verdict:
    """Edit success and overedit, for images of any size: `edited` is brought to the size of `source`."""
    change = _difference(source, edited)
    done = min(1.0, change / ENOUGH_CHANGE)
    kept = min(1.0, max(0.0, (MOST_CHANGE - change) / (MOST_CHANGE - ENOUGH_CHANGE)))
    reason = f"{NOTICE}: the pixels changed by {change:.3f} of the range"
    return Verdict((round(10 * done), round(10 * kept)), reason)


def score_quality(edited: Image.Image) -> Verdict:
    """The score for little grain, twice."""
    levels = np.pad(_levels(edited, "L"), 1, mode="edge")
    around = (levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]) / 4
    grain = float(np.abs(levels[1:-1, 1:-1] - around).mean())
    score = round(10 * max(0.0, 1 - grain / MOST_GRAIN))
    return Verdict((score, score), f"{NOTICE}: a pixel differs from its neighbours by {grain:.3f} of the range")


def score_agreement(target: Image.Image, edited: Image.Image) -> Verdict:
    """Agreement with `target`, whatever the sizes."""
    difference = _difference(target, edited)
    score = round(10 * max(0.0, 1 - difference / ENOUGH_CHANGE))
    return Verdict((score,), f"{NOTICE}: the pixels differ by {difference:.3f} of the range")


def _difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference of the channels, `second` brought to the size of `first`."""
    if second.size != first.size:
        second = second.resize(first.size, Image.Resampling.BOX)
    return float(np.abs(_levels(first, "RGB") - _levels(second, "RGB")).mean())


def _levels(image: Image.Image, mode: str) -> np.ndarray:
    """Pixel values from 0 to 1."""
    return np.asarray(image.convert(mode), np.float32) / 255
