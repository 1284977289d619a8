"""Whatever mode a file has, it becomes the 8-bit RGB that is seen."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import COLOUR, GREY, NOISE, file, png
from PIL import Image, PngImagePlugin, features

from emu3.errors import UserError
from emu3.tokenizer import images
from emu3.tokenizer.images import MAX_PIXELS, read_image, read_mask, scale_image, to_mask, to_rgb

ALPHA = NOISE.integers(0, 2, GREY.shape, dtype=np.uint8) * 255
SHOWN = np.where(ALPHA[..., None] > 0, COLOUR, 255).astype(np.uint8)


def pixels(buffer: io.BytesIO) -> np.ndarray:
    image = read_image(buffer, "it")
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None].astype(np.uint8), 3, axis=2)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(form: str) -> None:
    """Guards a white image: Pillow cuts every level above 255 off."""
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert np.array_equal(pixels(file(wide, form)), grey(GREY))
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    assert np.array_equal(pixels(file(Image.fromarray(ramp.astype(np.uint16)), form)), grey(ramp // 257))


@pytest.mark.parametrize("form", ["RGB", "RGBA", "LA", "RGB TIFF", "RGB TIFF, packed, upright"])
def test_16_bit_colours_are_scaled_like_grey(form: str) -> None:
    """Guards other codes for what looks alike: of colours Pillow keeps the high byte, level // 256."""
    wide = NOISE.integers(0, 65536, (40, 30, 3), dtype=np.uint16)
    opaque = np.full((40, 30, 1), 65535, np.uint16)
    if "TIFF" in form:
        packed = {"compression": "zlib", "extratags": [(274, 3, 1, 1, True)]} if "packed" in form else {}
        data = io.BytesIO()
        tifffile.imwrite(data, wide, photometric="rgb", **packed)
        data.seek(0)
    elif form == "LA":
        wide = np.repeat(wide[..., :1], 3, axis=2)
        data = png(np.dstack([wide[..., 0], opaque]), 16, 4)
    else:
        data = png(np.dstack([wide, opaque]) if form == "RGBA" else wide, 16, 6 if form == "RGBA" else 2)
    assert np.array_equal(pixels(data), wide // 257)


def test_a_transparent_colour_of_16_bits_is_that_alone() -> None:
    """Guards its neighbours, which have the same high bytes."""
    wide = np.array([[[5000, 600, 70], [5001, 600, 70], [5000, 601, 70], [9, 9, 9]]] * 4)
    shown = wide // 257
    shown[:, 0] = 255
    assert np.array_equal(pixels(png(wide, 16, 2, struct.pack(">HHH", 5000, 600, 70))), shown)


@pytest.mark.parametrize(
    ("samples", "options", "why"),
    [
        (GREY.astype(np.int16) * 100, {}, "signed numbers of 16 bits"),
        ((GREY // 2).astype(np.int8), {}, "signed numbers of 8 bits"),
        (
            COLOUR.transpose(2, 0, 1).astype(np.uint16) * 257,
            {"photometric": "rgb", "planarconfig": "separate"},
            "16 bits in separate planes",
        ),
    ],
)
def test_what_pillow_reads_as_something_else_is_refused(samples: np.ndarray, options: dict[str, Any], why: str) -> None:
    """Guards wrong colours without a word: half as bright, or noise of high and low bytes."""
    data = io.BytesIO()
    tifffile.imwrite(data, samples, **options)
    with pytest.raises(UserError, match=f"^it cannot be used as an image: .*{why}"):
        read_image(io.BytesIO(data.getvalue()), "it")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<!DOCTYPE html><html>403</html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"iVBORw0KGgo" * 20, r"text \(base64\?\)"),
        (bytes(3000), "zeros alone"),
        (b"\x93NUMPY\1\0", "an array"),
        (b'{"error": 1}', "JSON"),
        (b"II*\0" + bytes(20), "a TIFF file with pixels of a kind"),
    ],
)
def test_what_lies_in_the_place_of_an_image_is_named(data: bytes, why: str) -> None:
    with pytest.raises(UserError, match=rf"^it cannot be read as an image \(unknown format: {why}"):
        read_image(io.BytesIO(data), "it")


@pytest.mark.parametrize("low", [0, 7])
def test_32_bit_grey_is_scaled_where_its_range_is_plain(low: int) -> None:
    levels = np.maximum(GREY, low)
    for stored in (levels.astype(np.int32), levels.astype(np.int32) * 257, levels.astype(np.float32)):
        assert np.array_equal(pixels(file(Image.fromarray(stored), "TIFF")), grey(levels))
    assert np.array_equal(pixels(file(Image.fromarray(levels.astype(np.float32) / 255), "TIFF")), grey(levels))


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        (GREY.astype(np.int32) * 70_000, "integers from 0 to .* have no plain range"),
        (GREY.astype(np.int32) - 9, "integers from -9 to 246"),
        (GREY.astype(np.float32) * 1.5, r"floats from 0 to 38\d"),
        (np.where(GREY[0, 0] == GREY, np.nan, 0.5).astype(np.float32), "floats from nan"),
    ],
)
def test_numbers_without_a_range_are_refused(levels: np.ndarray, why: str) -> None:
    """Guards a guess: what is white in them, nobody knows."""
    with pytest.raises(UserError, match=f"^it cannot be used as an image: its {why}"):
        read_image(file(Image.fromarray(levels), "TIFF"), "it")


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (13, 250, 7)])
def test_transparency_lies_over_white(form: str, options: dict[str, Any], hidden: tuple[int, int, int]) -> None:
    """Guards colours that nobody sees: the editor left them there, and they were tokenized."""
    colours = np.where(ALPHA[..., None] > 0, COLOUR, hidden).astype(np.uint8)
    assert np.array_equal(pixels(file(Image.fromarray(np.dstack([colours, ALPHA])), form, **options)), SHOWN)


def test_transparency_in_every_other_way() -> None:
    """Grey with alpha, 16 bits with alpha, a transparent level or colour, a transparent entry of a palette."""
    shown = grey(np.where(ALPHA > 0, GREY, 255))
    assert np.array_equal(pixels(file(Image.fromarray(np.dstack([GREY, ALPHA])))), shown)
    wide = 257 * np.dstack([COLOUR, ALPHA]).astype(int)
    assert np.array_equal(pixels(png(wide, 16, 6)), SHOWN)
    assert np.array_equal(pixels(png(wide[..., [0, 3]], 16, 4)), shown)
    level = int(GREY[0, 0])
    assert np.array_equal(
        pixels(file(Image.fromarray(GREY), transparency=level)), grey(np.where(level == GREY, 255, GREY))
    )
    keyed = COLOUR.copy()
    keyed[(COLOUR[0, 0] == COLOUR).all(-1)] = 255
    assert np.array_equal(pixels(file(Image.fromarray(COLOUR), transparency=tuple(map(int, COLOUR[0, 0])))), keyed)
    few = Image.fromarray(COLOUR).quantize(8)
    seen = np.where((np.asarray(few) == 3)[..., None], 255, np.asarray(few.convert("RGB")))
    assert np.array_equal(pixels(file(few, transparency=3)), seen)
    assert np.array_equal(pixels(file(few, "GIF", transparency=3)), seen)


@pytest.mark.parametrize(("bits", "key"), [(1, 0), (1, 1), (2, 1), (2, 3), (4, 5), (8, 3), (16, 3)])
def test_a_transparent_level_is_one_of_the_files_own(bits: int, key: int) -> None:
    """Guards the pixels of a file with few bits: Pillow spreads its levels, and not the one that is transparent."""
    levels = np.arange(32).reshape(4, 8) % 2**bits
    shown = np.where(levels == key, 255, levels * 255 // (2**bits - 1))
    assert np.array_equal(pixels(png(levels, bits, 0, struct.pack(">H", key))), grey(shown))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "La", "RGBa", "PA", "1", "P"])
def test_every_mode_of_pillows(mode: str) -> None:
    between = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")
    image = Image.new("RGB", (4, 4), (200, 40, 30)).convert(between).convert(mode)
    found = to_rgb(image)
    assert found.mode == "RGB" and found.size == (4, 4)
    if mode not in ("La", "1"):
        assert np.abs(np.asarray(found)[0, 0].astype(int) - (200, 40, 30)).max() <= 25


def test_lab_has_its_colours() -> None:
    """Pillow converts every mode but this one."""
    lab = Image.merge("LAB", [Image.new("L", (4, 4), level) for level in (136, 208, 195)])  # about pure red
    red, green, blue = np.asarray(to_rgb(lab))[0, 0]
    assert red > 230 and green < 60 and blue < 60


def test_an_animation_is_its_first_frame() -> None:
    first, second = Image.fromarray(COLOUR).quantize(16), Image.new("P", (30, 40))
    assert np.array_equal(
        pixels(file(first, "GIF", save_all=True, append_images=[second])), np.asarray(first.convert("RGB"))
    )
    frames = file(
        Image.fromarray(COLOUR), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (30, 40))]
    )
    assert np.array_equal(pixels(frames), COLOUR)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_an_image_stands_upright(form: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    assert read_image(file(Image.fromarray(COLOUR), form, exif=exif), "it").size == (40, 30)


def test_notes_of_any_size_are_passed_over() -> None:
    """Guards a PNG file that was refused, and ended an evaluation, for a text that nobody reads."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "x" * 2_000_000, zip=True)
    notes.add_itxt("workflow", "y" * 2_000_000, zip=True)
    notes.add_text("after", "z" * 100)
    buffer = file(Image.fromarray(COLOUR), pnginfo=notes, icc_profile=b"p" * 3_000_000)
    assert np.array_equal(pixels(buffer), COLOUR)


def test_the_orientation_in_a_note_is_kept() -> None:
    """Guards an image on its side: ImageMagick writes a camera's notes as text."""
    exif = Image.Exif()
    exif[0x112] = 6
    profile = f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n"
    for packed in (False, True):
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Raw profile type exif", profile, zip=packed)
        assert read_image(file(Image.fromarray(COLOUR), pnginfo=notes), "it").size == (40, 30)


def test_the_limit_on_pixels_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match=r"^it cannot be used as an image: 30x40 is more than 1000 pixels"):
        read_image(file(Image.fromarray(COLOUR)), "it")
    monkeypatch.setattr(images, "MAX_BYTES", 500)
    with pytest.raises(UserError, match=r"^it cannot be used as an image: its file has more than 500 bytes"):
        read_image(file(Image.fromarray(COLOUR)), "it")
    with pytest.raises(UserError, match="more than 16777216"):
        scale_image(Image.fromarray(COLOUR), 10**12, 8)


def test_only_listed_formats_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against EPS, for which Pillow starts Ghostscript."""
    Image.init()
    opened = []
    for form, (_, accept) in dict(Image.OPEN).items():
        monkeypatch.setitem(Image.OPEN, form, (lambda *_, form=form: opened.append(form), accept))
    for head in (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"8BPS\0\1", b"\x00\x00\x01\x00\x01\x00", b"\x1f\x8b"):
        with pytest.raises(UserError, match="unknown format"):
            read_image(io.BytesIO(head + bytes(64)), "it")
    assert not opened


@pytest.mark.parametrize("convert", [to_rgb, to_mask], ids=["image", "mask"])
def test_large_images_are_converted_in_strips(convert: Callable[[Image.Image], Image.Image]) -> None:
    """Guards a seam: a strip that is pasted at another place."""
    tall = np.zeros((600, 4), np.uint16)
    tall[255:300] = 65535
    found = np.asarray(convert(Image.fromarray(tall)).convert("L"))
    assert np.array_equal(found, tall // 257)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_a_damaged_file_of_every_format_is_one_line(form: str) -> None:
    """Guards a decoder's own exception, of which there are dozens, at the end of a run."""
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    whole = file(Image.fromarray(COLOUR), form).getvalue()
    damage = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[: damage.integers(1, len(whole) + 1)])
        for place in damage.integers(0, len(data), 3):
            data[place] = damage.integers(256)
        for read in (read_image, read_mask):
            try:
                read(io.BytesIO(data), "it")
            except UserError as error:
                assert str(error).startswith("it cannot be ") and "\n" not in str(error)


PEAK = """
import resource, sys
from pathlib import Path
from emu3.tokenizer.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_image(Path(sys.argv[1]), "it")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "P", "RGB of 16 bits"])
def test_a_hostile_image_takes_less_than_a_gigabyte(tmp_path: Path, mode: str) -> None:
    """Guards the memory of whoever reads images from strangers: a small file can be all the pixels that are allowed."""
    side = 3000
    exif = Image.Exif()
    exif[0x112] = 6
    if mode == "RGB of 16 bits":
        tifffile.imwrite(tmp_path / "it.png", np.zeros((side, side, 3), np.uint16), photometric="rgb")
    else:
        image = Image.new(mode, (side, side))
        image.save(tmp_path / "it.png", compress_level=1, exif=exif, **({"transparency": 0} if mode == "P" else {}))
    ran = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "it.png"], capture_output=True, text=True, check=True)
    taken = int(ran.stdout) * 1024
    fixed = 40e6  # strips, and what libraries load when they are first used
    assert (taken - fixed) / side**2 * MAX_PIXELS < 1e9
