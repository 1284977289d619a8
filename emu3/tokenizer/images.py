"""Images from files, and the one size rule for every stage. No framework is imported here.

As published, an image is scaled to an area with its aspect kept, to whole pixels (`scale_image`), and goes into the
tokenizer at that size: its image processor is called with do_resize=False, so it neither rounds nor crops. Up to
factor - 1 rows at the bottom and columns at the right then get no code, but take part in the codes of the others.
`fit_image` crops those: the image of which source, target and output have the same size, for whoever compares them.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from emu3.errors import UserError


def read_image(file: Path | IO[bytes], name: str) -> Image.Image:
    """The RGB image in `file`, upright if the camera noted its orientation.

    Raises UserError, beginning with `name`, if there is no such file or it holds no whole image.
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


def scale_image(image: Image.Image, area: int, factor: int) -> Image.Image:
    """RGB image of about `area` pixels, as it goes into the tokenizer: a grid of height // factor by width // factor.

    Scaled (bicubic) to round(side * sqrt(area / pixels)); not cropped and not rounded to multiples of `factor`. Raises
    UserError where a side would be shorter than one cell.
    """
    scale = sqrt(area / (image.width * image.height))
    width, height = round(image.width * scale), round(image.height * scale)
    if min(width, height) < factor:
        raise UserError(
            f"a {image.width}x{image.height} image becomes {width}x{height} at an area of {area} pixels, "
            f"less than one cell of {factor}x{factor}"
        )
    scaled = image.convert("RGB")
    return scaled if scaled.size == (width, height) else scaled.resize((width, height), Image.Resampling.BICUBIC)


def fit_image(image: Image.Image, area: int, factor: int) -> Image.Image:
    """What of `scale_image` has a code: cropped at the bottom and the right to multiples of `factor`.

    That is the size of the image after encoding and decoding. Encoding the crop itself gives other codes than
    encoding the whole, unless nothing had to be cropped. Raises UserError as `scale_image`.
    """
    scaled = scale_image(image, area, factor)
    return scaled.crop((0, 0, scaled.width - scaled.width % factor, scaled.height - scaled.height % factor))
