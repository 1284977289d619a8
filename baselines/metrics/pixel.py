"""Distances between pixels, L1, L2, PSNR and SSIM over RGB in [0, 1], and any metric on a part of the image.

    L1    mean of |a - b|                       lower is better
    L2    mean of (a - b)^2                     lower is better; no root is taken
    PSNR  10 log10(1 / L2), decibels            higher is better
    SSIM  mean of the local index, -1 to 1      higher is better

L1 and L2 are the two of MagicBrush (Zhang et al., 2023); PIE-Bench (Ju et al., 2024, "PnP Inversion") calls L2 MSE and
prints it times 10^4, SSIM times 10^2. SSIM is eq. 13 of Wang et al. (2004) with its Gaussian window of 11 pixels (sigma
1.5), K1 0.01, K2 0.03, for each channel. As there, the mean runs over the windows that lie inside the image, where
torchmetrics' own mean takes in mirrored borders. It is computed in float32: 15 times as fast as float64 on a CPU, and
off by about 1e-6. Two equal images have no finite PSNR, and no stand-in for it is made up.

`Masked` takes a metric on the part of an image that an edit was not to touch, or on the part that it was:

    NAME_background    the metric against the source, with the region of the edit black in both images
    clip_t_edited      cosine of the region of the edit, all else black, and the target caption

As PIE-Bench measures them: the masked images are measured whole, so what is black in both counts as unchanged, and a
sample with a large mask looks better than its background is. PIE-Bench prints PSNR, LPIPS times 10^3, MSE
(`l2_background`) times 10^4, SSIM times 10^2, and the cosine times 10^2 (CLIP-E; `clip_t` of the whole image is its
CLIP-W). Two things differ here: SSIM's mean leaves out the mirrored border, and images are compared at the size of the
run, 256x256 by default as our models make them, where PIE-Bench has 512x512. The paper does not say at which size its
Table 10 was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor

from baselines.metrics.image_metric import (
    Against,
    EditedSample,
    ImageMetric,
    Missing,
    framed_pair,
    over_known,
    score_pairs,
)
from baselines.metrics.metric_weights import device, library, version_of

PixelName = Literal["l1", "l2", "psnr", "ssim"]
Region = Literal["background", "edited"]

WINDOW = 11


def l1(edited: Tensor, reference: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) twice -> float64 (B,), 0 to 1."""
    return (_unit(edited) - _unit(reference)).abs().mean((1, 2, 3))


def l2(edited: Tensor, reference: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) twice -> float64 (B,), 0 to 1."""
    return (_unit(edited) - _unit(reference)).square().mean((1, 2, 3))


def psnr(edited: Tensor, reference: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) twice -> float64 (B,) in decibels, infinite for equal images."""
    return -10 * l2(edited, reference).log10()


def ssim_by_torchmetrics() -> Callable[[Tensor, Tensor], Tensor]:
    """uint8 (B, 3, H, W) twice -> float32 (B,), -1 to 1, NaN for sides below `WINDOW`. Raises `MissingDependency`."""
    index = library("torchmetrics.functional.image", "torchmetrics").structural_similarity_index_measure
    border = WINDOW // 2

    def ssim(edited: Tensor, reference: Tensor) -> Tensor:
        if min(edited.shape[2:]) < WINDOW:
            return torch.full(edited.shape[:1], torch.nan)
        units = (pixels.float() / 255 for pixels in (edited, reference))
        _, local = index(*units, data_range=1.0, sigma=1.5, reduction="none", return_full_image=True)
        return local[..., border:-border, border:-border].mean((1, 2, 3))

    return ssim


def _unit(pixels: Tensor) -> Tensor:
    return pixels.double() / 255


class PixelMetric:
    """L1, L2, PSNR or SSIM of every sample. `name` ends in `_source` where the edit is compared with its source."""

    def __init__(self, name: PixelName, against: Against) -> None:
        """Raises `MissingDependency` for SSIM without torchmetrics."""
        self.name = name if against == "target" else f"{name}_source"
        self.higher_is_better = name in ("psnr", "ssim")
        self.needs_target = against == "target"
        self._against = against
        if name == "ssim":
            self._distance = ssim_by_torchmetrics()
            self.version = f"{version_of('torchmetrics')}, float32, RGB in [0, 1], Gaussian {WINDOW}x{WINDOW}, inner"
        else:
            self._distance = {"l1": l1, "l2": l2, "psnr": psnr}[name]
            self.version = "float64, RGB in [0, 1]"
        self._undefined = {
            "psnr": f"edited image and {against} are equal: the PSNR is infinite",
            "ssim": f"a side is shorter than the SSIM's window of {WINDOW} pixels",
        }.get(name, "the value is not finite")

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        return score_pairs(rows, self._against, self._distance, device(), self._undefined)


class Masked:
    """`metric` on a part of each image; it may look at source, edited image and captions."""

    needs_target = False

    def __init__(self, name: str, metric: ImageMetric, part: Region) -> None:
        self.name = name
        self.higher_is_better = metric.higher_is_better
        self.version = f"{metric.version}, all but the {part} part black"
        self._metric = metric
        self._part = part

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        return over_known([_only(row, self._part) for row in rows], self._metric.score)


def _only(row: EditedSample, part: Region) -> EditedSample | Missing:
    """The row with all but `part` black in source and edited image, both at the source's size."""
    if row.mask is None:
        return Missing("the sample has no mask of the edited region")
    pair = framed_pair(row, "source")
    if isinstance(pair, Missing):
        return pair
    keep = row.mask if part == "edited" else ImageOps.invert(row.mask)
    if keep.getbbox() is None:
        return Missing(f"the mask leaves no {part} part")
    edited, source = (Image.composite(image, Image.new("RGB", image.size), keep) for image in pair)
    return replace(row, source=source, edited=edited)
