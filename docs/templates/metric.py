"""A metric of one's own: the share of pixels that the edit changed.

    python -m baselines.score --predictions runs/x/eval/sft_s --metrics docs/templates/metric.py:ChangedPixels

A class of the folder `--weights` (None where it is not given) with the members of `ImageMetric`
(baselines/metrics/image_metric.py), or of `SetMetric` for one number over all samples. `version` has to change when its
numbers would; the SHA-256 of this file is recorded besides. What cannot be measured is `Missing` with a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from baselines.metrics.image_metric import EditedSample, Missing, framed_pair

THRESHOLD = 16
"""Of 255, in any channel; less is noise of the tokenizer."""


class ChangedPixels:
    name = "changed_pixels"
    higher_is_better = False
    needs_target = False
    version = "1"

    def __init__(self, weights: Path | None) -> None:
        del weights  # it has none

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        """0 to 1 for each sample, or why there is none."""
        return [_share(row) for row in rows]


def _share(row: EditedSample) -> float | Missing:
    pair = framed_pair(row, "source")
    if isinstance(pair, Missing):
        return pair
    edited, source = (np.asarray(image, np.int16) for image in pair)
    return float((np.abs(edited - source).max(axis=2) > THRESHOLD).mean())
