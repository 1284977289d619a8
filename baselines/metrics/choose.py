"""A metric by its name. Libraries and weights are loaded for the one that is asked for.

A name with `_source` behind it compares the edited picture with its source: for benchmarks without target pictures,
where it says how much was changed and not how well. With `_background` it does so outside the mask of the edit, where
a benchmark has masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from baselines.metrics.protocol import AbsentMetric, AbsentSetMetric, Metric, Reference, SetMetric
from baselines.metrics.weights import Absent
from emu3.errors import UserError

# Compared with the target or, as NAME_source, with the source picture; True where higher is better.
COMPARING = {
    "l1": False,
    "l2": False,
    "psnr": True,
    "ssim": True,
    "lpips": False,
    "st_lpips": False,
    "clip_i": True,
    "dino": True,
    "structure_distance": False,
}
OUTSIDE_THE_MASK = ("l1", "l2", "psnr", "ssim", "lpips")
SEEING_TEXT = ("clip_t", "clip_t_edited", "clip_instruction", "clip_direction")
OVER_A_SET = ("fid",)
NAMES = (
    *COMPARING,
    *(f"{name}_source" for name in COMPARING),
    *(f"{name}_background" for name in OUTSIDE_THE_MASK),
    *SEEING_TEXT,
    *OVER_A_SET,
)


def metric_named(name: str, weights: Path | None = None) -> Metric | SetMetric:
    """The metric of that name; one whose weights or packages are not there answers `Missing` to everything.

    weights: a folder with all weights, laid out as `baselines.metrics.weights` says; None: the Hub and PyTorch's cache.
    Raises `UserError` for another name, a folder that does not exist, and weights that are broken.
    """
    if name not in NAMES:
        raise UserError(f"there is no metric {name!r}; there are viescore, {', '.join(NAMES)}")
    if weights is not None and not weights.is_dir():
        raise UserError(f"the folder of weights {weights} does not exist")
    try:
        return _load(name, weights)
    except Absent as absent:
        if name in OVER_A_SET:
            return AbsentSetMetric(name, higher_is_better=False, needs_target=True, reason=str(absent))
        base = name.removesuffix("_source").removesuffix("_background")
        return AbsentMetric(name, COMPARING.get(base, True), needs_target=name in COMPARING, reason=str(absent))


def _load(name: str, weights: Path | None) -> Metric | SetMetric:
    if name.endswith("_background"):
        from baselines.metrics.masked import Masked

        return Masked(name, cast(Metric, _load(f"{name.removesuffix('_background')}_source", weights)), "background")
    against: Reference = "source" if name.endswith("_source") else "target"
    match name.removesuffix("_source"):
        case "l1" | "l2" | "psnr" | "ssim" as base:
            from baselines.metrics.pixel import PixelMetric

            return PixelMetric(base, against)
        case "lpips":
            from baselines.metrics.perceptual import lpips

            return lpips(against, weights)
        case "st_lpips":
            from baselines.metrics.perceptual import st_lpips

            return st_lpips(against)
        case "clip_i":
            from baselines.metrics.clip import BASE, clip_encoder
            from baselines.metrics.similarity import ImageSimilarity

            return ImageSimilarity("clip_i", against, clip_encoder(BASE, weights))
        case "dino":
            from baselines.metrics.dino import dino_encoder
            from baselines.metrics.similarity import ImageSimilarity

            return ImageSimilarity("dino", against, dino_encoder(weights))
        case "structure_distance":
            from baselines.metrics.structure import StructureDistance

            return StructureDistance(against, weights)
        case "clip_t" | "clip_instruction" as text_metric:
            from baselines.metrics.clip import LARGE, ClipText, clip_encoder

            return ClipText(text_metric, clip_encoder(LARGE, weights))
        case "clip_t_edited":
            from baselines.metrics.masked import Masked

            return Masked(name, cast(Metric, _load("clip_t", weights)), "edited")
        case "clip_direction":
            from baselines.metrics.clip import LARGE, ClipDirection, clip_encoder

            return ClipDirection(clip_encoder(LARGE, weights))
        case _:
            from baselines.metrics.fid import fid

            return fid(weights)
