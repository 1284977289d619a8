"""Pictures from files, and the one size rule for every stage. No framework is imported here.

A picture is scaled to an area with its aspect kept, then cropped to whole cells. The published pipeline leaves the
crop to the tokenizer, which silently drops up to factor - 1 rows and columns at the bottom and the right; the same
ones go here, but before anything else sees the picture, so that sources, targets and outputs have one size.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from emu3.errors import UserError


def read_image(file: Path | IO[bytes], name: str) -> Image.Image:
    """The RGB picture in `file`, upright if the camera noted its orientation.

    Raises UserError, beginning with `name`, if there is no such file or it holds no whole picture.
    """
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except Exception as error:  # a decoder fed with garbage raises nearly anything
        # Pillow's own message for an unknown format holds a memory address: equal input has to give equal text.
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{name} cannot be read as an image ({why})") from error


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
