"""A mask becomes its region, whatever marks it, or is refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from image_files import COLOUR, GREY, file, png
from PIL import Image

from emu3.errors import UserError
from emu3.tokenizer.images import read_mask, to_mask

REGION = np.zeros((40, 30), bool)
REGION[5:20, 3:25] = True


def rgba(inside: tuple[int, ...], outside: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(REGION[..., None], inside, outside).astype(np.uint8))


def indexed(*palette: int) -> Image.Image:
    image = Image.fromarray(REGION.astype(np.uint8)).convert("P")
    image.putdata(REGION.astype(int).ravel().tolist())
    image.putpalette(palette)
    return image


def keyed(form: str, transparent: int) -> io.BytesIO:
    """The region white on black in a file of which one level is transparent."""
    bits = {"1": 1, "L": 8, "I;16": 16}[form]
    return png(REGION * (2**bits - 1), bits, 0, struct.pack(">H", transparent))


@pytest.mark.parametrize("form", ["1", "L", "I;16"])
def test_a_transparent_level_marks_no_region(form: str) -> None:
    """Guards a number about the whole image: black that is transparent was laid over white."""
    assert np.array_equal(np.asarray(read_mask(keyed(form, 0), "it")), REGION * 255)
    assert np.array_equal(np.asarray(read_mask(keyed("L", 17), "it")), REGION * 255)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(REGION),
        Image.fromarray(REGION * np.uint8(255)),
        Image.fromarray(REGION.astype(np.uint8)),
        Image.fromarray(REGION * np.uint16(65535)),
        Image.fromarray(REGION * np.uint16(255)),
        Image.fromarray(REGION.astype(np.int32)),
        Image.fromarray(REGION.astype(np.float32)),
        rgba((255, 255, 255), (0, 0, 0)),
        rgba((255, 0, 0), (0, 0, 0)),
        rgba((255, 255, 255, 255), (0, 0, 0, 255)),
        rgba((255, 255, 255, 255), (0, 0, 0, 0)),
        rgba((255, 255, 255, 255), (255, 255, 255, 0)),
        rgba((255, 0, 0, 255), (0, 0, 0, 0)),
        rgba((255, 255), (255, 0)),
        rgba((255, 255), (0, 255)),
        indexed(0, 0, 0, 255, 255, 255),
        indexed(0, 0, 0, 128, 0, 0),
        indexed(0, 0, 0, 1, 1, 1),
    ],
    ids=lambda image: f"{image.mode}-{image.getextrema()}",
)
def test_a_region_is_found_whatever_marks_it(image: Image.Image) -> None:
    """Guards a number about an empty region: zeros and ones, 16 bits, or an alpha channel came out black."""
    form = "TIFF" if image.mode in ("I", "F") else "PNG"
    for found in (to_mask(image), read_mask(file(image, form), "it")):
        assert found.mode == "L" and np.array_equal(np.asarray(found), REGION * 255)


def test_edges_may_be_smooth() -> None:
    large = Image.fromarray(REGION * np.uint8(255)).resize((600, 800), Image.Resampling.BICUBIC)
    wide = Image.fromarray(np.asarray(large).astype(np.uint16))  # levels of 8 bits in a file of 16
    for data in (file(large.convert("RGB"), "JPEG", quality=60), file(wide)):
        found = np.asarray(read_mask(data, "it"))
        assert set(np.unique(found)) == {0, 255}
        assert abs((found > 0).mean() - REGION.mean()) < 0.01


@pytest.mark.parametrize(("level", "found"), [(0, 0), (255, 255)])
def test_all_and_nothing(level: int, found: int) -> None:
    for image in (Image.new("L", (4, 4), level), Image.new("RGB", (4, 4), (level,) * 3), Image.new("1", (4, 4), level)):
        assert np.unique(to_mask(image)).tolist() == [found]


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image.fromarray(GREY), "its levels from .* are not black and white"),
        (Image.fromarray(COLOUR), "several colours"),
        (Image.new("L", (4, 4), 1), "levels from 1 to 1"),
        (Image.fromarray(REGION + REGION[::-1] * np.uint8(2)), "levels from 0 to 2"),
        (Image.fromarray(np.where(REGION, 255, 128).astype(np.uint8)), "levels from 128 to 255"),
        (Image.fromarray(np.dstack([COLOUR, REGION * np.uint8(255)])), "could mark the region or its surroundings"),
        (rgba((0, 0, 0, 0), (0, 0, 0, 255)), "could mark the region or its surroundings"),
        (rgba((0, 0, 0, 255), (0, 0, 0, 0)), "could mark the region or its surroundings"),
        (rgba((255, 255, 255, 128), (0, 0, 0, 0)), "half so"),
        (rgba((0, 0, 0, 0), (255, 255, 255, 0)), "is transparent"),
        (indexed(0, 128, 0, 128, 0, 0), "several colours"),
        (Image.fromarray((REGION + REGION[::-1] * 2).astype(np.uint16)), "levels from 0 to 2"),
        (Image.fromarray(np.where(REGION, 255, 254).astype(np.uint8)), "levels from 254 to 255"),
    ],
)
def test_what_could_mean_two_things_is_refused(image: Image.Image, why: str) -> None:
    """Guards the worst outcome: a score of the wrong half of an image."""
    with pytest.raises(UserError, match=f"^it cannot be used as a mask: .*{why}"):
        read_mask(file(image), "it")
