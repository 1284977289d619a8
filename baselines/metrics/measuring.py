"""Every metric but VIEScore, by its name: what there is, and a row of the scores file for each prediction.

A name with `_source` behind it compares the edited image with its source: for benchmarks without targets, where it says
how much was changed and not how well. With `_background` it does so outside the mask of the edit, where a benchmark has
masks. Libraries and weights are loaded for the metric that is asked for; images are read when their turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from baselines.metrics.image_metric import (
    AbsentMetric,
    AbsentSetMetric,
    Against,
    EditedSample,
    ImageMetric,
    Missing,
    SetMetric,
)
from baselines.metrics.metric_weights import MissingDependency
from baselines.results.records import MISSING, SCORED, VIESCORE, WHOLE_SET, Prediction, ScoredSample, scored_row
from emu3.errors import UserError
from emu3.extensions import is_extension, load_extension, make_extension
from emu3.tokenizer.images import read_image

# Rows whose images are in memory at once; a metric makes its own batches of them.
WINDOW = 64

# Compared with the target or, as NAME_source, with the source; True where higher is better.
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


def metric_named(name: str, weights: Path | None = None) -> ImageMetric | SetMetric:
    """The metric of that name, or one's own as `emu3.extensions` names it, a class or function of `weights`. One whose
    weights or packages are not there answers `Missing` to everything.

    weights: a folder with all weights, laid out as `baselines.metrics.metric_weights` says; None: the Hub and
    PyTorch's cache.
    Raises `UserError` for another name, a folder that does not exist, and weights that are broken.
    """
    if name not in NAMES and not is_extension(name):
        raise UserError(
            f"there is no metric {name!r}; there are viescore, {', '.join(NAMES)}, and your own: file.py:name"
        )
    if weights is not None and not weights.is_dir():
        raise UserError(f"the folder of weights {weights} does not exist")
    if is_extension(name):
        return _own(name, weights)
    try:
        return _load(name, weights)
    except MissingDependency as absent:
        if name in OVER_A_SET:
            return AbsentSetMetric(name, higher_is_better=False, needs_target=True, reason=str(absent))
        base = name.removesuffix("_source").removesuffix("_background")
        return AbsentMetric(name, COMPARING.get(base, True), needs_target=name in COMPARING, reason=str(absent))


def _load(name: str, weights: Path | None) -> ImageMetric | SetMetric:
    if name.endswith("_background"):
        from baselines.metrics.pixel import Masked

        return Masked(
            name, cast(ImageMetric, _load(f"{name.removesuffix('_background')}_source", weights)), "background"
        )
    against: Against = "source" if name.endswith("_source") else "target"
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
            from baselines.metrics.embeddings import CLIP_BASE, ImageSimilarity, clip_encoder

            return ImageSimilarity("clip_i", against, clip_encoder(CLIP_BASE, weights))
        case "dino":
            from baselines.metrics.embeddings import ImageSimilarity, dino_encoder

            return ImageSimilarity("dino", against, dino_encoder(weights))
        case "structure_distance":
            from baselines.metrics.perceptual import StructureDistance

            return StructureDistance(against, weights)
        case "clip_t" | "clip_instruction" as text_metric:
            from baselines.metrics.embeddings import CLIP_LARGE, ClipText, clip_encoder

            return ClipText(text_metric, clip_encoder(CLIP_LARGE, weights))
        case "clip_t_edited":
            from baselines.metrics.pixel import Masked

            return Masked(name, cast(ImageMetric, _load("clip_t", weights)), "edited")
        case "clip_direction":
            from baselines.metrics.embeddings import CLIP_LARGE, ClipDirection, clip_encoder

            return ClipDirection(clip_encoder(CLIP_LARGE, weights))
        case _:
            from baselines.metrics.fid import fid

            return fid(weights)


def _own(text: str, weights: Path | None) -> ImageMetric | SetMetric:
    over_a_set = hasattr(load_extension(text, "metric"), "score_set")
    metric: ImageMetric | SetMetric = make_extension(
        text, "metric", "(weights)", weights, protocol=SetMetric if over_a_set else ImageMetric
    )
    if metric.name in (*NAMES, VIESCORE):
        raise UserError(f"metric {text}: its name {metric.name!r} is that of another one: choose another name")
    return metric


def measure(metric: ImageMetric | SetMetric, rows: Sequence[Prediction], folder: Path) -> list[ScoredSample]:
    """A row of the scores file per prediction, in order, or one over all of them for a metric over a set. Paths of the
    rows start from `folder`."""
    if hasattr(metric, "score_set"):
        return [_measure_set(cast(SetMetric, metric), rows, folder)]
    return list(_measure_rows(cast(ImageMetric, metric), rows, folder))


def _measure_rows(metric: ImageMetric, rows: Sequence[Prediction], folder: Path) -> Iterator[ScoredSample]:
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        for row, result in zip(window, metric.score([_with_images(row, folder) for row in window]), strict=True):
            if isinstance(result, Missing):
                yield scored_row(row, metric.name, MISSING, None, detail=result.reason)
            else:
                yield scored_row(row, metric.name, SCORED, float(result))


def _measure_set(metric: SetMetric, rows: Sequence[Prediction], folder: Path) -> ScoredSample:
    result = metric.score_set(_with_images(row, folder) for row in rows)
    if isinstance(result, Missing):
        row = scored_row(rows[0], metric.name, MISSING, None, detail=result.reason)
    else:
        value, n = result
        row = scored_row(rows[0], metric.name, SCORED, float(value), parts={"n": n})
    return replace(
        row,
        id=WHOLE_SET,
        split=_only({prediction.split for prediction in rows}),
        task=_only({prediction.task for prediction in rows}),
        source_set=_only({prediction.source_set for prediction in rows}),
    )


def _only(values: set[str]) -> str:
    """What all rows have in common, else nothing."""
    return values.pop() if len(values) == 1 else ""


def _with_images(row: Prediction, folder: Path) -> EditedSample:
    source, edited, target, mask = (
        read_image(folder / name, str(folder / name)) if name is not None else None
        for name in (row.source, row.edited, row.target, row.mask)
    )
    assert source is not None and edited is not None
    return EditedSample(
        source=source,
        edited=edited,
        target=target,
        instruction=row.instruction,
        source_caption=row.source_caption,
        target_caption=row.target_caption,
        mask=mask.convert("L") if mask is not None else None,
    )
