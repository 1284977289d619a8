"""A metric on the part of a picture that an edit was not to touch, or on the part that it was.

    NAME_background    the metric against the source, with the region of the edit black in both pictures
    clip_t_edited      cosine of the region of the edit, all else black, and the target caption

As PIE-Bench measures them (Ju et al., 2024, "PnP Inversion"): the masked pictures are measured whole, so what is black
in both counts as unchanged, and a sample with a large mask looks better than its background is. PIE-Bench prints PSNR,
LPIPS times 10^3, MSE (`l2_background`) times 10^4, SSIM times 10^2, and the cosine times 10^2 (CLIP-E; `clip_t` of the
whole picture is its CLIP-W). Two things differ here: SSIM's mean leaves out the mirrored border
(`baselines.metrics.pixel`), and pictures are compared at the size of the run, 256x256 by default as our models make
them, where PIE-Bench has 512x512. The paper does not say at which size its Table 10 was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from PIL import Image, ImageOps

from baselines.metrics.frames import framed_pair
from baselines.metrics.protocol import Metric, Missing, Pictures

Part = Literal["background", "edited"]


class Masked:
    """`metric` on a part of each picture; it may look at source, edited picture and captions."""

    needs_target = False

    def __init__(self, name: str, metric: Metric, part: Part) -> None:
        self.name = name
        self.higher_is_better = metric.higher_is_better
        self.version = f"{metric.version}, all but the {part} part black"
        self._metric = metric
        self._part = part

    def score(self, rows: Sequence[Pictures]) -> list[float | Missing]:
        parts = [_only(row, self._part) for row in rows]
        kept = [place for place, part in enumerate(parts) if not isinstance(part, Missing)]
        scores: list[float | Missing] = [part if isinstance(part, Missing) else Missing("") for part in parts]
        values = self._metric.score([part for part in parts if not isinstance(part, Missing)])
        for place, value in zip(kept, values, strict=True):
            scores[place] = value
        return scores


def _only(row: Pictures, part: Part) -> Pictures | Missing:
    """The row with all but `part` black in source and edited picture, both at the source's size."""
    if row.mask is None:
        return Missing("the sample has no mask of the edited region")
    pair = framed_pair(row, "source")
    if isinstance(pair, Missing):
        return pair
    keep = row.mask if part == "edited" else ImageOps.invert(row.mask)
    if keep.getbbox() is None:
        return Missing(f"the mask leaves no {part} part")
    edited, source = (Image.composite(picture, Image.new("RGB", picture.size), keep) for picture in pair)
    return replace(row, source=source, edited=edited)
