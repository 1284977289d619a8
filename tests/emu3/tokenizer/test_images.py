"""The size rule, the crop, and the way between pictures and tensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emu3.errors import UserError
from emu3.tokenizer.images import fit_image, read_image
from emu3.tokenizer.tensors import to_pil, to_tensor


@pytest.mark.parametrize(
    ("size", "area", "fitted"),
    [
        ((256, 256), 65536, (256, 256)),
        ((512, 512), 65536, (256, 256)),
        ((640, 480), 65536, (296, 216)),  # scaled to 296x222
        ((480, 640), 65536, (216, 296)),
        ((100, 50), 65536, (360, 176)),  # scaled to 362x181
        ((48, 48), 2304, (48, 48)),
    ],
)
def test_size_rule(size: tuple[int, int], area: int, fitted: tuple[int, int]) -> None:
    """Sizes decide the grid, and a grid that differs from the published one is another task."""
    assert fit_image(Image.new("RGB", size), area, 8).size == fitted


def test_crop_takes_from_the_bottom_and_the_right() -> None:
    """A centred crop would shift the codes against those of the published tokenizer."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 52, 3), dtype=np.uint8)
    fitted = fit_image(Image.fromarray(pixels), 50 * 52, 8)
    assert np.array_equal(np.asarray(fitted), pixels[:48, :48])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    """Palettes must be resolved before the scaling, which would mix their indices."""
    white = Image.new("RGB", (64, 64), "white").convert(mode)
    fitted = fit_image(white, 32 * 32, 8)
    assert fitted.mode == "RGB"
    assert fitted.getextrema() == ((255, 255),) * 3


def test_picture_thinner_than_a_cell() -> None:
    """It would crop to nothing."""
    with pytest.raises(UserError, match=r"4000x3 picture becomes 1753x1"):
        fit_image(Image.new("RGB", (4000, 3)), 2304, 8)


def test_a_photo_lies_as_the_camera_held_it(tmp_path: Path) -> None:
    """Guards phone photos: without the EXIF turn the model would edit a picture that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    photo = read_image(tmp_path / "turned.jpg", "it")
    assert (photo.size, photo.mode) == ((20, 40), "RGB")


def test_an_unreadable_picture_is_told_by_its_name(tmp_path: Path) -> None:
    """Also one that is cut short, whose header is fine; and twice in the same words, as they end up in manifests."""
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(buffer, "PNG")
    for data in (b"no picture", buffer.getvalue()[:300]):
        told = []
        for _ in range(2):
            with pytest.raises(UserError, match=r"^row 3 cannot be read as an image \(") as error:
                read_image(io.BytesIO(data), "row 3")
            told.append(str(error.value))
        assert told[0] == told[1]
    with pytest.raises(UserError, match="it does not exist"):
        read_image(tmp_path / "none.png", "it")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path, "it")


def test_tensor_and_back_is_the_same_picture() -> None:
    """Every level of every channel survives: truncation instead of rounding loses some."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack((levels, levels.T, 255 - levels), axis=2)
    tensor = to_tensor([Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())])
    assert tensor.shape == (2, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1.0, 1.0)
    first, second = to_pil(tensor)
    assert np.array_equal(np.asarray(first), pixels)
    assert np.array_equal(np.asarray(second), pixels[::-1])


def test_pixels_outside_the_range_are_clipped() -> None:
    """A decoder overshoots; wrapping would put black dots on white."""
    picture = to_pil(torch.tensor([-1.5, 1.5, 1.004]).view(1, 3, 1, 1))[0]
    assert picture.getpixel((0, 0)) == (0, 255, 255)


def test_sizes_must_agree() -> None:
    """Guards against a batch of mixed sizes reaching np.stack's own message."""
    with pytest.raises(ValueError, match="one size"):
        to_tensor([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16))])
