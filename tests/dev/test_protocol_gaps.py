"""The comparison of the published ways with an image: known answers on images made for it."""

from __future__ import annotations

import pytest
from PIL import Image

from dev.protocol_gaps import GAPS, gap, source_cropped
from emu3.tokenizer.images import scaled_size


def grey(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def test_a_known_difference_has_a_known_size() -> None:
    """Guards the units: 3 levels in every pixel of one of two images."""
    one, other = Image.new("RGB", (16, 8), (10, 10, 10)), Image.new("RGB", (16, 8), (13, 13, 13))
    found = gap("x", iter([(one, one), (one, other)]), cropped=False)
    assert (found.n, found.resized, found.differing, found.area) == (2, 0, 1, 1.0)
    assert found.l1 is not None and found.psnr is not None
    assert found.l1[0] == 3.0 and found.psnr[0] == pytest.approx(38.588, abs=1e-3)


def test_a_crop_takes_pixels_and_changes_none() -> None:
    """Guards a border that is taken for a difference; and each way on shapes that it is about."""
    sources = [grey(512, 512), grey(427, 240), grey(480, 270)]
    found = gap("x", source_cropped(sources), cropped=True)
    sizes = [scaled_size(image.size, 65536, 8) for image in sources]
    uneven = sum(size[0] % 8 > 0 or size[1] % 8 > 0 for size in sizes)
    assert (found.resized, found.differing, found.l1) == (uneven, 0, None) and uneven == 2 and found.area > 1
    ways = {name: gap(name, way(sources), cropped=False) for name, way in GAPS.items()}
    assert [way.n for way in ways.values()] == [3] * len(GAPS)
    assert ways["batches of 8 with mixed sizes"].differing >= 2 and ways["JPEG of quality 75"].resized == 0
