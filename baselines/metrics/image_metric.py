"""What a metric is: images in, and for each sample a number or the reason why there is none.

A metric never gives a stand-in. Weights or a package that are not there, a sample without the image or the
caption that is compared with, a ratio that is infinite: each is `Missing` with its reason, which the next step counts.
Means over samples are not taken here.

Size rule for metrics that compare pixel by pixel: images of one size are compared as they are. Otherwise the edited
image is scaled (bicubic) to the other's size, since the other one is given by the data; where the two aspect ratios are
further apart than `ASPECT_TOLERANCE`, pixels at the same place no longer show the same thing, and there is no number.
Images are not padded: batches hold one size each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu3.tokenizer.blocks import plain_float32
from emu3.tokenizer.images import to_rgb

Against = Literal["target", "source"]
Item = TypeVar("Item")

# A side of 80 pixels or more that was cropped to a multiple of 8 stays within it.
ASPECT_TOLERANCE = 0.1
BATCH_PIXELS = 2**21


@dataclass(frozen=True)
class EditedSample:
    """One sample; images are RGB. `target` is the one that the data calls right; captions describe the image before and
    after the edit; `mask`, of mode L and the source's size, is white where the edit belongs. What the data does not
    have is None.
    """

    source: Image.Image
    edited: Image.Image
    target: Image.Image | None
    instruction: str
    source_caption: str | None = None
    target_caption: str | None = None
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Missing:
    """No number. reason: one line, equal for equal causes."""

    reason: str


class _Described(Protocol):
    """`version` names library, model, weights and preprocessing: two numbers with one name and one version were made
    alike. `needs_target` is true where a sample without target can have no number."""

    @property
    def name(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def needs_target(self) -> bool: ...
    @property
    def version(self) -> str: ...


@runtime_checkable
class ImageMetric(_Described, Protocol):
    """A number per sample."""

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        """One finite number or reason per row, in order."""
        ...


@runtime_checkable
class SetMetric(_Described, Protocol):
    """One number over a set of samples."""

    def score_set(self, rows: Iterable[EditedSample]) -> tuple[float, int] | Missing:
        """(value, number of rows that it was made from), or the reason. Rows may come one by one from a generator."""
        ...


@dataclass(frozen=True)
class _Absent:
    """Stands for a metric whose weights or packages are not there: every result is `Missing(reason)`."""

    name: str
    higher_is_better: bool
    needs_target: bool
    reason: str

    @property
    def version(self) -> str:
        return f"absent: {self.reason}"


class AbsentMetric(_Absent):
    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        return [Missing(self.reason)] * len(rows)


class AbsentSetMetric(_Absent):
    def score_set(self, rows: Iterable[EditedSample]) -> Missing:
        return Missing(self.reason)


def over_known(
    items: Sequence[Item | Missing], score: Callable[[list[Item]], Sequence[float | Missing]]
) -> list[float | Missing]:
    """`score` of the items that are there, put back into their places; what is missing stays as it is."""
    known = [item for item in items if not isinstance(item, Missing)]
    values = iter(score(known) if known else [])
    return [item if isinstance(item, Missing) else next(values) for item in items]


def reference_of(row: EditedSample, against: Against) -> Image.Image | Missing:
    """The image that the edited one is compared with."""
    if against == "source":
        return row.source
    return row.target if row.target is not None else Missing("the sample has no target image")


def framed_pair(row: EditedSample, against: Against) -> tuple[Image.Image, Image.Image] | Missing:
    """(edited, reference) as RGB images of the reference's size, by the size rule of this module."""
    reference = reference_of(row, against)
    if isinstance(reference, Missing):
        return reference
    edited, reference = to_rgb(row.edited), to_rgb(reference)
    if edited.size != reference.size:
        stretch = edited.width * reference.height / (edited.height * reference.width)
        if max(stretch, 1 / stretch) > 1 + ASPECT_TOLERANCE:
            sizes = " and ".join(f"{image.width}x{image.height}" for image in (edited, reference))
            return Missing(f"edited image and {against} have different aspect ratios: {sizes}")
        edited = edited.resize(reference.size, Image.Resampling.BICUBIC)
    return edited, reference


def as_tensor(images: Sequence[Image.Image], device: torch.device) -> Tensor:
    """RGB images of one size -> uint8 (B, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).to(device)


def batches(sizes: Mapping[int, tuple[int, int]]) -> Iterator[list[int]]:
    """Keys of equal (width, height), at most `BATCH_PIXELS` together (a larger one goes alone)."""
    buckets: dict[tuple[int, int], list[int]] = {}
    for key, size in sizes.items():
        buckets.setdefault(size, []).append(key)
    for (width, height), keys in buckets.items():
        count = max(1, BATCH_PIXELS // (width * height))
        for start in range(0, len(keys), count):
            yield keys[start : start + count]


def score_pairs(
    rows: Sequence[EditedSample],
    against: Against,
    distance: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    undefined: str = "the value is not finite",
) -> list[float | Missing]:
    """`distance(edited, reference)` of every row: it gets uint8 (B, 3, H, W) twice and returns (B,).

    Rows without a pair are `Missing`; so is, for the reason `undefined`, what comes back as NaN or infinite.
    """

    def score(pairs: list[tuple[Image.Image, Image.Image]]) -> list[float | Missing]:
        scores: dict[int, float | Missing] = {}
        for places in batches({place: edited.size for place, (edited, _) in enumerate(pairs)}):
            edited, reference = (as_tensor([pairs[place][side] for place in places], device) for side in (0, 1))
            with torch.inference_mode(), plain_float32():
                values = distance(edited, reference).tolist()
            for place, value in zip(places, values, strict=True):
                scores[place] = value if isfinite(value) else Missing(undefined)
        return [scores[place] for place in range(len(pairs))]

    return over_known([framed_pair(row, against) for row in rows], score)
