"""The size rule, the crop, and the way between images and tensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Emu3ImageProcessor

from emu3.errors import UserError
from emu3.tokenizer.codec import to_pil, to_tensor
from emu3.tokenizer.images import fit_image, read_image, scale_image
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.random_vision import random_vqvae

SIZES = [
    # image, area, scaled, grid (both width x height)
    ((256, 256), 65536, (256, 256), (32, 32)),
    ((512, 512), 65536, (256, 256), (32, 32)),
    ((1024, 1024), 65536, (256, 256), (32, 32)),
    ((640, 480), 65536, (296, 222), (37, 27)),
    ((480, 640), 65536, (222, 296), (27, 37)),
    ((1920, 1080), 65536, (341, 192), (42, 24)),
    ((1000, 667), 65536, (313, 209), (39, 26)),
    ((500, 375), 65536, (296, 222), (37, 27)),
    ((100, 50), 65536, (362, 181), (45, 22)),
    ((257, 255), 65536, (257, 255), (32, 31)),
    ((1, 1), 65536, (256, 256), (32, 32)),
    ((900, 100), 65536, (768, 85), (96, 10)),
    ((640, 480), 262144, (591, 443), (73, 55)),
    ((48, 32), 1536, (48, 32), (6, 4)),
    ((48, 48), 2304, (48, 48), (6, 6)),
]


def speckled(size: tuple[int, int]) -> Image.Image:
    """Noise shows every difference in resampling."""
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize(("size", "area", "scaled", "grid"), SIZES)
def test_the_tokenizer_is_given_what_the_published_pipeline_gives_it(
    size: tuple[int, int], area: int, scaled: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Guards sizes, resampling and normalization, bit for bit: other pixels are other codes, and other sizes another
    grid. Published: sides times the root of the area's ratio, rounded, Pillow's default filter; then an image
    processor that neither resizes nor crops."""
    image = speckled(size)
    ratio = (area / (size[0] * size[1])) ** 0.5
    resized = image.resize((round(size[0] * ratio), round(size[1] * ratio)))
    processor = Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=False, spatial_factor=8)
    published = processor(resized, return_tensors="pt")
    ours = scale_image(image, area, 8)
    assert ours.size == scaled
    assert torch.equal(to_tensor([ours]), published["pixel_values"])
    height, width = published["image_sizes"][0].tolist()
    assert (width // 8, height // 8) == grid


@pytest.mark.parametrize(("size", "area", "scaled", "grid"), SIZES)
def test_the_fitted_image_is_the_part_that_has_codes(
    size: tuple[int, int], area: int, scaled: tuple[int, int], grid: tuple[int, int]
) -> None:
    """A crop at the centre, or a rounding up, would lay the image beside an output that shows another part of it."""
    fitted = fit_image(speckled(size), area, 8)
    assert fitted.size == (8 * grid[0], 8 * grid[1])
    whole = np.asarray(scale_image(speckled(size), area, 8))
    assert np.array_equal(np.asarray(fitted), whole[: fitted.height, : fitted.width])


def test_what_has_the_right_size_is_left_alone() -> None:
    """An image that was fitted before, or drawn at its size, must not be resampled."""
    for size in ((48, 32), (256, 256)):
        image = speckled(size)
        assert np.array_equal(np.asarray(fit_image(image, size[0] * size[1], 8)), np.asarray(image))


def test_cropping_before_encoding_gives_other_codes() -> None:
    """Why `scale_image` is what goes into the tokenizer: norms and convolutions see the rows beyond the last cell."""
    still = StillVQ.from_transformers(random_vqvae(dtype=torch.float64, base_channels=32, hidden_size=128))
    image = speckled((44, 30))
    whole = still.encode(to_tensor([scale_image(image, 44 * 30, 8)]).double())
    cropped = still.encode(to_tensor([fit_image(image, 44 * 30, 8)]).double())
    assert whole.shape == cropped.shape == (1, 3, 5)
    assert not torch.equal(whole, cropped)


def test_decoded_images_are_those_of_the_published_processor() -> None:
    """It truncates; rounding would show the judge images that are half a step lighter."""
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    processor = Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    [published] = processor.postprocess(list(pixels.numpy()))["pixel_values"]
    assert np.array_equal(np.asarray(to_pil(pixels)[0]), np.asarray(published))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    """Palettes must be resolved before the scaling, which would mix their indices."""
    white = Image.new("RGB", (64, 64), "white").convert(mode)
    fitted = fit_image(white, 32 * 32, 8)
    assert fitted.mode == "RGB"
    assert fitted.getextrema() == ((255, 255),) * 3


def test_image_thinner_than_a_cell() -> None:
    """It would crop to nothing."""
    with pytest.raises(UserError, match=r"4000x3 image becomes 1753x1"):
        fit_image(Image.new("RGB", (4000, 3)), 2304, 8)


def test_a_photo_lies_as_the_camera_held_it(tmp_path: Path) -> None:
    """Guards phone photos: without the EXIF turn the model would edit an image that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    photo = read_image(tmp_path / "turned.jpg", "it")
    assert (photo.size, photo.mode) == ((20, 40), "RGB")


def test_an_unreadable_image_is_told_by_its_name(tmp_path: Path) -> None:
    """Also one that is cut short, whose header is fine; and twice in the same words, as they end up in manifests."""
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(buffer, "PNG")
    for data in (b"no image", buffer.getvalue()[:300]):
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


def test_tensor_and_back_is_the_same_image_but_for_a_step() -> None:
    """Truncation may lose one level to float32; more would be another scale, and another order of axes is noise."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack((levels, levels.T, 255 - levels), axis=2)
    tensor = to_tensor([Image.fromarray(pixels), Image.fromarray(pixels[::-1].copy())])
    assert tensor.shape == (2, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1.0, 1.0)
    for image, original in zip(to_pil(tensor), (pixels, pixels[::-1]), strict=True):
        lost = original.astype(int) - np.asarray(image)
        assert lost.min() == 0 and lost.max() <= 1


def test_pixels_outside_the_range_are_clipped() -> None:
    """A decoder overshoots; wrapping would put black dots on white."""
    image = to_pil(torch.tensor([-1.5, 1.5, 1.004]).view(1, 3, 1, 1))[0]
    assert image.getpixel((0, 0)) == (0, 255, 255)


def test_sizes_must_agree() -> None:
    """Guards against a batch of mixed sizes reaching np.stack's own message."""
    with pytest.raises(ValueError, match="one size"):
        to_tensor([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16))])
