"""Pictures to tensors and back: one size rule for every stage.

A picture is scaled to an area with its aspect kept, then cropped to whole cells. The published pipeline leaves the
crop to the tokenizer, which silently drops up to factor - 1 rows and columns at the bottom and the right; the same
ones go here, but before anything else sees the picture, so that sources, targets and outputs have one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu3.errors import UserError


def fit_image(image: Image.Image, area: int, factor: int) -> Image.Image:
    """RGB picture of about `area` pixels, both sides multiples of `factor`.

    Scaled (bicubic) to round(side * sqrt(area / pixels)), then cropped at the bottom and the right. Raises UserError
    where a side would be shorter than one cell.
    """
    scale = sqrt(area / (image.width * image.height))
    width, height = round(image.width * scale), round(image.height * scale)
    if min(width, height) < factor:
        raise UserError(
            f"a {image.width}x{image.height} picture becomes {width}x{height} at an area of {area} pixels, "
            f"less than one cell of {factor}x{factor}"
        )
    scaled = image.convert("RGB")
    if scaled.size != (width, height):
        scaled = scaled.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((0, 0, width - width % factor, height - height % factor))


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> float32 (B, 3, H, W) in [-1, 1]. Raises ValueError if the sizes differ."""
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"pictures of one size are wanted, got {sorted(sizes)}")
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Float (B, 3, H, W) -> RGB pictures; values outside [-1, 1] are clipped, the rest rounded to the nearest step."""
    levels = ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]
