"""One size for all images of a sample."""

from __future__ import annotations

import numpy as np
import pytest
from noise_images import noise
from PIL import Image

from baselines.editors.editing import SourceFrame
from emu3.errors import UserError
from emu3.tokenizer.images import fit_image

AREA = 65536
# Sizes of AURORA-Bench's images and some thin ones.
SIZES = [(512, 512), (500, 500), (480, 320), (456, 256), (427, 240), (318, 480), (424, 240), (1021, 383), (250, 1000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("multiple", [8, 16])
def test_an_edit_with_rounded_sides_goes_where_its_source_went(size: tuple[int, int], multiple: int) -> None:
    """Guards against an editor's rounding that is taken for another shape, and the size that every row of a table
    shares."""
    source = Image.new("RGB", size)
    frame = SourceFrame(source, AREA)
    rounded = (size[0] - size[0] % multiple, size[1] - size[1] % multiple)
    assert frame.holds(rounded)
    assert frame.fit(Image.new("L", rounded)).size == frame.shown.size == fit_image(source, AREA, 8).size


def test_the_frame_stays_where_it_is() -> None:
    """Guards a judge against an image that is shifted or stretched against its source: the edges stay in place."""
    pixels = np.zeros((240, 427, 3), np.uint8)
    pixels[:, 200:] = 255
    source = Image.fromarray(pixels)
    frame = SourceFrame(source, AREA)
    edit = frame.fit(source.resize((424, 240), Image.Resampling.BICUBIC))
    difference = np.abs(np.asarray(edit, float) - np.asarray(frame.shown, float)).max(axis=(0, 2))
    assert (difference > 40).sum() <= 2, "only the columns at the edge may differ"


def test_an_image_of_the_shown_size_is_left_alone() -> None:
    frame = SourceFrame(noise(0, 427, 240), AREA)
    edit = noise(1, *frame.shown.size)
    assert frame.fit(edit).tobytes() == edit.tobytes()


@pytest.mark.parametrize("size", [(512, 512), (240, 427), (427, 200), (400, 260)])
def test_another_shape_is_no_edit_of_the_source(size: tuple[int, int]) -> None:
    assert not SourceFrame(Image.new("RGB", (427, 240)), AREA).holds(size)


def test_a_target_of_another_shape_keeps_it() -> None:
    frame = SourceFrame(Image.new("RGB", (427, 240)), AREA)
    assert frame.fit_target(Image.new("RGB", (300, 300))).size == (256, 256)
    assert frame.fit_target(Image.new("RGB", (854, 480))).size == frame.shown.size


def test_a_thin_source_is_refused() -> None:
    with pytest.raises(UserError, match="less than one cell"):
        SourceFrame(Image.new("RGB", (4000, 1)), AREA)
