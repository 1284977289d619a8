"""Images from files as 8-bit RGB, masks as masks, and the one size rule for every stage. No framework is imported here.

Whatever mode a file has, `to_rgb` makes 8-bit RGB of it in one way: transparency lies over white, 16 bits become 8
(level // 257), of an animation the first frame counts; colour profiles and gamma are not applied. So files whose
visible pixels are equal give equal codes. What has no plain meaning in 8 bits is refused, like a mask that could mark
a region or its surroundings.

As published, an image is scaled to an area with its aspect kept, to whole pixels (`scale_image`), and goes into the
tokenizer at that size: its image processor is called with do_resize=False, so it neither rounds nor crops. Up to
factor - 1 rows at the bottom and columns at the right then get no code, but take part in the codes of the others.
`fit_image` crops those: the image of which source, target and output have the same size, for whoever compares them.
"""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from math import sqrt
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from emu3.errors import UserError, one_line

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""All that Pillow may open. EPS is none of them: it would start Ghostscript."""
MAX_PIXELS = 110_000_000
"""A larger image is refused before it is decoded. While it is read an image takes up to 8 bytes a pixel."""
MAX_BYTES = 100_000_000
"""Of the file of one image."""
MAX_MASK_PIXELS = 2**25
"""Of a mask, which is looked at several times."""
MAX_AREA = 2**24
"""Pixels of the largest image that a tokenizer is given."""
BACKGROUND = (255, 255, 255)
"""What is seen through transparent pixels."""

DARK, BRIGHT = 64, 192
"""Levels below and from which a pixel of a mask is plainly outside and inside; at most `SOFT` of all lie between."""
SOFT = 0.05

_PNG = b"\x89PNG\r\n\x1a\n"
# Notes of a PNG file that may hold the orientation, and the bytes up to which they are kept: a packed one may grow a
# thousand times, and Pillow refuses a file with a note above a megabyte.
_ORIENTED = {b"iTXtXML:com.adobe.xmp": 2**16, b"tEXtRaw profile type exif": 2**16, b"zTXtRaw profile type exif": 1000}
_STRIP_ROWS = 256
# The factor from a sample of so many bits to a level, by Pillow's names for what PNG files hold.
_SAMPLE_LEVELS = {"1": 255.0, "L;2": 85.0, "L;4": 17.0}
# How Pillow reads colours of 16 bits, of which it keeps the high bytes; and how it would read the low ones.
_LOW_BYTES = {"LA;16B": "RGBA"} | {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "RGBX", "CMYK")
    for order, other in ("BL", "LB", ("N", "B" if sys.byteorder == "little" else "L"))
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PLANES, _TIFF_SAMPLES = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2
# How the files begin that lie where an image should.
_NO_IMAGES = {
    rb"\s*<(!doctype|html|head|body)": "an HTML page",
    rb"\s*<(\?xml|svg|[a-z]+[ >])": "XML: a drawing, or the error of a server",
    rb"\s*[{\[]": "JSON",
    rb"%PDF|%!PS|8BPS": "PDF, PostScript or Photoshop",
    rb"\x93NUMPY|\x80[\x02-\x05]": "an array or a pickle",
    rb"PK\x03\x04|\x1f\x8b|BZh|7z\xbc|\x28\xb5\x2f\xfd|\xfd7zXZ": "a packed file",
    rb"....ftyp(hei|hev|mif1|msf1)": "HEIC",
    rb"(II|MM)[*+\0]": "a TIFF file with pixels of a kind that is not read",
    rb"\0+$": "zeros alone",
    rb"data:|[A-Za-z0-9+/\s_-]{64,}={0,2}\s*$": "text (base64?)",
}
_UPRIGHT = dict(
    zip(
        range(2, 9),
        [
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ],
        strict=True,
    )
)


class Unclear(UserError):
    """Pixels that could mean more than one thing. The message says what they are."""


def read_image(file: Path | IO[bytes], name: str) -> Image.Image:
    """The RGB image in `file`, upright if the camera noted its orientation.

    Raises UserError, beginning with `name`, if there is no such file or it holds no whole image of `FORMATS`, one of
    more than `MAX_PIXELS` or `MAX_BYTES`, or one that `to_rgb` refuses.
    """
    return _read(file, name, "an image", to_rgb)


def read_mask(file: Path | IO[bytes], name: str) -> Image.Image:
    """The mask in `file` as `to_mask` makes it. Raises UserError as `read_image`, and for a mask that is not clear."""
    return _read(file, name, "a mask", to_mask)


def image_size(file: Path | IO[bytes]) -> tuple[int, int]:
    """Width and height as the file states them, undecoded; (0, 0) if it is no image."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except Exception:  # what is wrong with it is reported when it is read
        return (0, 0)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in any of Pillow's modes as 8-bit RGB over `BACKGROUND`; `image` itself if it is that already.

    16-bit grey becomes level // 257. 32-bit integers up to 255 are levels, up to 65,535 16-bit levels; floats from 0 to
    1 are shares of white, whole ones up to 255 levels. Raises Unclear for other numbers.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _is_wide(image):
        key = image.info.get("transparency")
        grey = _levels(image, key)
        return grey.convert("RGB") if key is None else _over_background(grey)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")  # type: ignore[arg-type]
        assert rgb is not None
        return rgb
    return _over_background(image) if image.has_transparency_data else image.convert("RGB")


def to_mask(image: Image.Image) -> Image.Image:
    """The region that a mask marks, as an image of mode L: 255 inside, 0 outside.

    The region is white on black, or one colour on black or on transparency, whatever the mode: 1 bit, 8 or 16, zeros
    and ones, palette. Nothing but black marks nothing, nothing but white everything. Raises Unclear for the rest:
    several levels or colours, and an image with a hole, since the region could be the hole or its surroundings.
    """
    if image.width * image.height > MAX_MASK_PIXELS:
        raise Unclear(f"{image.width}x{image.height} is more than {MAX_MASK_PIXELS} pixels")
    if (image.mode in ("1", "L") or _is_wide(image)) and "transparency" not in image.info:
        high = max(part.max() for _, part in _strips(image))
        if high > 0 and all(((part == 0) | (part == high)).all() for _, part in _strips(image)):
            inside = np.asarray(image) > 0
            if not inside.all():
                return Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0)))
        if high <= 255 and image.mode.startswith("I;16"):  # 8-bit levels, or numbers of regions, in a wider file
            image = image.convert("I")
    if image.has_transparency_data:
        seen = _levels(image, image.info["transparency"]) if _is_wide(image) else _straight(image)
        rgba = np.asarray(seen.convert("RGBA"))
    else:
        rgba = np.asarray(to_rgb(image).convert("RGBA"))
    colours, alpha = rgba[..., :3], rgba[..., 3]
    inside = _region_on_transparency(colours, alpha) if alpha.min() < 255 else _region_on_black(colours)
    return Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0)))


def _region_on_black(colours: np.ndarray) -> np.ndarray:
    """bool (H, W) of opaque uint8 colours (H, W, 3)."""
    red, green, blue = (colours[..., channel] for channel in range(3))
    grey = np.maximum(np.maximum(red, green), blue)
    if (grey - np.minimum(np.minimum(red, green), blue)).max() > DARK:
        packed = np.unique(colours.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32))
        kinds = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
        dark = kinds.max(-1) < DARK
        if len(kinds) == 2 and dark.sum() == 1:
            return np.asarray(grey >= DARK)
        raise Unclear("it has several colours, where a mask is white on black")
    low, high = int(grey.min()), int(grey.max())
    if high == 0 or (low == high and low >= 255 - DARK // 2):
        return np.asarray(grey > 0)
    if low == 0 and ((grey == 0) | (grey == high)).all():
        return np.asarray(grey > 0)
    between = float(np.mean((grey >= DARK) & (grey < BRIGHT)))
    if low >= DARK or high < BRIGHT or between > SOFT:
        raise Unclear(f"its levels from {low} to {high} are not black and white, {between:.0%} of them lie between")
    return np.asarray(grey > 127)


def _region_on_transparency(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """bool (H, W) of uint8 colours (H, W, 3), some of which are transparent."""
    visible = colours[alpha >= 128].astype(np.int16)
    between = float(np.mean((alpha >= DARK) & (alpha < BRIGHT)))
    if not len(visible) or between > SOFT:
        raise Unclear("it is transparent, or half so, in all of its region")
    one = (np.ptp(visible, axis=0) <= DARK // 2).all()
    white, coloured = visible.min() >= BRIGHT, (np.ptp(visible, axis=1) >= DARK).all()
    if not one or not (white or coloured):
        raise Unclear("its transparency could mark the region or its surroundings: make the region white on black")
    return np.asarray(alpha >= 128)


def _read(file: Path | IO[bytes], name: str, kind: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Unclear(f"its file has more than {MAX_BYTES} bytes")
        with Image.open(io.BytesIO(_without_notes(data)), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unclear(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
            stored = _as_stored(image, data)
            orientation = image.getexif().get(ExifTags.Base.Orientation)  # after loading: TIFF is turned by then
            converted = convert(stored)
            if orientation not in _UPRIGHT:
                return converted
            if converted is not stored:
                stored.close()  # not three copies at once
            return converted.transpose(_UPRIGHT[orientation])
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except Unclear as error:
        raise UserError(f"{name} cannot be used as {kind}: {error}") from None
    except Exception as error:  # a decoder fed with garbage raises nearly anything
        # Pillow's own message for an unknown format holds a memory address: equal input has to give equal text.
        unknown = isinstance(error, UnidentifiedImageError)
        why = f"unknown format{_found_instead(data)}" if unknown else f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{name} cannot be read as an image ({why})") from error


def _found_instead(data: bytes) -> str:
    found = (what for start, what in _NO_IMAGES.items() if re.match(start, data[:4096], re.IGNORECASE | re.DOTALL))
    return "".join(f": {what}" for what in list(found)[:1])


def _as_stored(image: Image.Image, data: bytes) -> Image.Image:
    """The first frame, decoded, with what Pillow leaves undone: the transparent level of a PNG file in the units of
    its pixels, the range and direction of 16-bit grey in a TIFF file, and the low bytes of 16-bit colours."""
    key = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", None)
    tags: Any = getattr(image, "tag_v2", None)
    sample = tiles[0].args if tiles and image.format in ("PNG", "TIFF") else None
    sample = sample[0] if isinstance(sample, tuple) else sample
    if tags is not None:
        bits = max(tags.get(_TIFF_BITS, (1,)))
        if bits > 8 and tags.get(_TIFF_PLANES) == _SEPARATE and len(tiles) > 1:
            raise Unclear(f"it has {bits} bits in separate planes, which Pillow reads as 8")
        if bits < 32 and _SIGNED in tags.get(_TIFF_SAMPLES, ()):
            raise Unclear(f"its levels are signed numbers of {bits} bits, which have no plain range")
    if sample in _LOW_BYTES:
        return _of_16_bits(image, data, sample)
    if key is not None and sample in _SAMPLE_LEVELS:
        factor = _SAMPLE_LEVELS[sample]
        image.info["transparency"] = (
            tuple(int(one * factor) for one in key) if isinstance(key, tuple) else int(key * factor)
        )
    image.load()
    if tags is None or not image.mode.startswith("I;16"):
        return image
    inverted = tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    if bits == 16 and not inverted:
        return image
    return _levels(image, None, top=2**bits - 1, inverted=inverted)


def _of_16_bits(image: Image.Image, data: bytes, sample: str) -> Image.Image:
    """Colours of 16 bits as level // 257, like grey, where Pillow has level // 256: that is the high byte, or one less
    where the low byte is smaller. `sample`: how Pillow reads them."""
    key = image.info.pop("transparency", None)
    with Image.open(io.BytesIO(data), formats=FORMATS) as again:
        again.tile = [  # type: ignore[attr-defined]
            tile._replace(
                args=(_LOW_BYTES[sample], *tile.args[1:]) if isinstance(tile.args, tuple) else _LOW_BYTES[sample]
            )
            for tile in again.tile  # type: ignore[attr-defined]
        ]
        image.load()
        again.load()
        found = image if key is None else Image.new("RGBA", image.size)
        for (row, high), (_, low) in zip(_strips(image), _strips(again), strict=True):
            low = low[..., [1, 1, 1, 3]] if sample == "LA;16B" else low
            levels = high - (low < high)
            if key is not None:
                alpha = (high.astype(np.int32) * 256 + low != key).any(-1)
                levels = np.dstack([levels, alpha * np.uint8(255)])
            found.paste(Image.fromarray(levels.astype(np.uint8), found.mode), (0, row))
    return found


def _is_wide(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _levels(image: Image.Image, key: Any, top: float | None = None, inverted: bool = False) -> Image.Image:
    """Grey of more than 8 bits as L, or as LA with pixels of the level `key` transparent. top: the level of white."""
    white = _top(image) if top is None else top
    grey = Image.new("L" if key is None else "LA", image.size)
    for row, part in _strips(image):
        whole = isinstance(white, int)
        part = white - part.astype(np.int64) if inverted else part
        levels = part.astype(np.int64) * 255 // int(white) if whole else np.floor(part * (255 / white) + 0.5)
        levels = np.clip(levels, 0, 255).astype(np.uint8)
        if key is None:
            grey.paste(Image.fromarray(levels), (0, row))
        else:
            alpha = np.where(part == key, 0, 255).astype(np.uint8)
            grey.paste(Image.merge("LA", (Image.fromarray(levels), Image.fromarray(alpha))), (0, row))
    return grey


def _top(image: Image.Image) -> int | float:
    """The level of white of 16-bit or 32-bit grey; a float for floats. Raises Unclear where it cannot be known."""
    if image.mode.startswith("I;16"):
        return 65535
    parts = [(part.min(), part.max(), bool(np.all(part == np.floor(part)))) for _, part in _strips(image)]
    low, high, whole = min(part[0] for part in parts), max(part[1] for part in parts), all(part[2] for part in parts)
    if image.mode == "F" and low >= 0 and (high <= 1 or (whole and high <= 255)):
        return 1.0 if high <= 1 else 255.0
    if image.mode == "I" and low >= 0 and high <= 65535:
        return 255 if high <= 255 else 65535
    raise Unclear(f"its {'floats' if image.mode == 'F' else 'integers'} from {low:g} to {high:g} have no plain range")


def _strips(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """The first row and the pixels of a few rows at a time: a copy of a large image whole would double its memory."""
    for row in range(0, image.height, _STRIP_ROWS):
        yield row, np.asarray(image.crop((0, row, image.width, min(row + _STRIP_ROWS, image.height))))


def _over_background(image: Image.Image) -> Image.Image:
    image = _straight(image)
    rgb = Image.new("RGB", image.size)
    for row in range(0, image.height, _STRIP_ROWS):
        part = image.crop((0, row, image.width, min(row + _STRIP_ROWS, image.height))).convert("RGBA")
        white = Image.new("RGBA", part.size, BACKGROUND)
        rgb.paste(Image.alpha_composite(white, part).convert("RGB"), (0, row))
    return rgb


def _straight(image: Image.Image) -> Image.Image:
    """`image` in a mode that Pillow can make RGBA of."""
    return image.convert("LA") if image.mode == "La" else image.convert("L") if image.mode == "1" else image


def _without_notes(data: bytes) -> bytes:
    """A PNG file without texts and colour profile, which nobody reads here and Pillow refuses when they are large."""
    if not data.startswith(_PNG):
        return data
    kept, start, position = [], 0, len(_PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        orientation = any(data.startswith(note, position + 4) and length <= most for note, most in _ORIENTED.items())
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") and not orientation:
            kept.append(data[start:position])
            start = end
        position = end
    return b"".join([*kept, data[start:]]) if kept else data


def scale_image(image: Image.Image, area: int, factor: int) -> Image.Image:
    """RGB image of about `area` pixels, as it goes into the tokenizer: a grid of height // factor by width // factor.

    Scaled (bicubic) to round(side * sqrt(area / pixels)); not cropped and not rounded to multiples of `factor`. Raises
    UserError where a side would be shorter than one cell, and for an area above `MAX_AREA`.
    """
    size = scaled_size(image.size, area, factor)
    scaled = to_rgb(image)
    return scaled if scaled.size == size else scaled.resize(size, Image.Resampling.BICUBIC)


def scaled_size(size: tuple[int, int], area: int, factor: int) -> tuple[int, int]:
    """Width and height after `scale_image`, which says the rest."""
    if area > MAX_AREA:
        raise UserError(f"an image area of {area} pixels is more than {MAX_AREA}")
    scale = sqrt(area / (size[0] * size[1]))
    width, height = round(size[0] * scale), round(size[1] * scale)
    if min(width, height) < factor:
        raise UserError(
            f"a {size[0]}x{size[1]} image becomes {width}x{height} at an area of {area} pixels, "
            f"less than one cell of {factor}x{factor}"
        )
    return width, height


def fit_image(image: Image.Image, area: int, factor: int) -> Image.Image:
    """What of `scale_image` has a code: cropped at the bottom and the right to multiples of `factor`.

    That is the size of the image after encoding and decoding. Encoding the crop itself gives other codes than
    encoding the whole, unless nothing had to be cropped. Raises UserError as `scale_image`.
    """
    scaled = scale_image(image, area, factor)
    return scaled.crop((0, 0, scaled.width - scaled.width % factor, scaled.height - scaled.height % factor))
