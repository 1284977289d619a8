"""Which picture an edited one is compared with, at which size, and many of them at a time.

Size rule: pictures of one size are compared as they are. Otherwise the edited picture is scaled (bicubic) to the
other's size, since the other one is given by the data; where the two aspect ratios are further apart than
`ASPECT_TOLERANCE`, pixels at the same place no longer show the same thing, and there is no number. Pictures are not
padded: batches hold one size each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from baselines.metrics.protocol import Missing, Pictures, Reference
from emu3.tokenizer.quantizer import plain_float32

# A side of 80 pixels or more that was cropped to a multiple of 8 stays within it.
ASPECT_TOLERANCE = 0.1
BATCH_PIXELS = 2**21


def reference_of(row: Pictures, against: Reference) -> Image.Image | Missing:
    """The picture that the edited one is compared with."""
    if against == "source":
        return row.source
    return row.target if row.target is not None else Missing("the sample has no target picture")


def framed_pair(row: Pictures, against: Reference) -> tuple[Image.Image, Image.Image] | Missing:
    """(edited, reference) as RGB pictures of the reference's size, by the size rule of this module."""
    reference = reference_of(row, against)
    if isinstance(reference, Missing):
        return reference
    edited, reference = row.edited.convert("RGB"), reference.convert("RGB")
    if edited.size != reference.size:
        stretch = edited.width * reference.height / (edited.height * reference.width)
        if max(stretch, 1 / stretch) > 1 + ASPECT_TOLERANCE:
            sizes = " and ".join(f"{picture.width}x{picture.height}" for picture in (edited, reference))
            return Missing(f"edited picture and {against} have different aspect ratios: {sizes}")
        edited = edited.resize(reference.size, Image.Resampling.BICUBIC)
    return edited, reference


def as_tensor(images: Sequence[Image.Image], device: torch.device) -> Tensor:
    """RGB pictures of one size -> uint8 (B, 3, H, W)."""
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
    rows: Sequence[Pictures],
    against: Reference,
    distance: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    undefined: str = "the value is not finite",
) -> list[float | Missing]:
    """`distance(edited, reference)` of every row: it gets uint8 (B, 3, H, W) twice and returns (B,).

    Rows without a pair are `Missing`; so is, for the reason `undefined`, what comes back as NaN or infinite.
    """
    scores: dict[int, float | Missing] = {}
    pairs: dict[int, tuple[Image.Image, Image.Image]] = {}
    for place, row in enumerate(rows):
        pair = framed_pair(row, against)
        if isinstance(pair, Missing):
            scores[place] = pair
        else:
            pairs[place] = pair
    for places in batches({place: edited.size for place, (edited, _) in pairs.items()}):
        edited, reference = (as_tensor([pairs[place][side] for place in places], device) for side in (0, 1))
        with torch.inference_mode(), plain_float32():
            values = distance(edited, reference).tolist()
        for place, value in zip(places, values, strict=True):
            scores[place] = value if isfinite(value) else Missing(undefined)
    return [scores[place] for place in range(len(rows))]
