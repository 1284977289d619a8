"""Metrics on the background and on the edited region: against numbers worked out by hand, and against the library."""

from __future__ import annotations

from math import log10
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import sample, waves
from tiny_encoders import save_clip
from torchmetrics.functional.image import structural_similarity_index_measure

from baselines.metrics.image_metric import EditedSample, ImageMetric, Missing
from baselines.metrics.measuring import metric_named


def flat(level: int, inside: int) -> Image.Image:
    """16x16 grey pixels, another level in the left quarter."""
    pixels = np.full((16, 16, 3), level, np.uint8)
    pixels[:, :4] = inside
    return Image.fromarray(pixels)


MASK = flat(0, 255).convert("L")


def row(**fields: object) -> EditedSample:
    """An edit that changed the left quarter by 100 levels and, though it should not have, all else by 51."""
    return sample(**({"source": flat(100, 100), "edited": flat(151, 200), "mask": MASK} | fields))


def value(name: str, *rows: EditedSample, weights: Path | None = None) -> float | Missing:
    metric = metric_named(name, weights)
    assert isinstance(metric, ImageMetric)
    return metric.score(rows)[0]


def test_the_background_by_hand() -> None:
    """Guards a mask the wrong way round, and a mean over other pixels than PIE-Bench's: a change of 51 / 255 = 0.2 in
    three quarters of the image, the masked quarter counted as unchanged."""
    assert value("l1_background", row()) == pytest.approx(0.75 * 0.2)
    assert value("l2_background", row()) == pytest.approx(0.75 * 0.04)
    assert value("psnr_background", row()) == pytest.approx(10 * log10(1 / 0.03))


def test_ssim_of_the_background_is_the_librarys() -> None:
    images = [waves(1, 48, 40), waves(2, 48, 40)]
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, 5:25] = 255
    black = [np.asarray(image) * (mask == 0)[..., None] for image in images]
    tensors = [torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None] for pixels in black]
    _, local = structural_similarity_index_measure(*tensors, data_range=1.0, sigma=1.5, return_full_image=True)
    expected = local[..., 5:-5, 5:-5].mean().item()
    found = value("ssim_background", row(source=images[0], edited=images[1], mask=Image.fromarray(mask)))
    assert found == pytest.approx(expected, abs=1e-5)
    assert value(
        "ssim_background", row(source=images[0], edited=images[0], mask=Image.fromarray(mask))
    ) == pytest.approx(1)


def test_the_edited_region_is_what_clip_sees(tmp_path: Path) -> None:
    """Guards CLIP-E that is CLIP-W: what lies outside the mask must not matter, what lies inside must."""
    save_clip(tmp_path / "clip-vit-large-patch14")
    inside, outside = flat(151, 90), flat(0, 200)
    region = value("clip_t_edited", row(), weights=tmp_path)
    assert region == pytest.approx(value("clip_t", row(edited=outside), weights=tmp_path), abs=1e-5)
    assert region == pytest.approx(value("clip_t_edited", row(edited=outside), weights=tmp_path), abs=1e-5)
    assert region != pytest.approx(value("clip_t_edited", row(edited=inside), weights=tmp_path), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("psnr_background", {"mask": None}, "no mask of the edited region"),
        ("psnr_background", {"mask": Image.new("L", (16, 16), 255)}, "leaves no background part"),
        ("l1_background", {"edited": waves(0, 32, 16)}, "different aspect ratios"),
        ("psnr_background", {"edited": flat(100, 200)}, "the PSNR is infinite"),
    ],
)
def test_without_a_part_to_look_at_there_is_no_number(name: str, fields: dict[str, object], reason: str) -> None:
    """Guards the zero that a black image against a black image would give; rows beside it keep their places."""
    metric = metric_named(name)
    assert isinstance(metric, ImageMetric)
    missing, number = metric.score([row(**fields), row()])
    assert isinstance(missing, Missing) and reason in missing.reason
    assert number == value(name, row())


def test_an_edit_of_another_size_is_brought_to_the_source() -> None:
    """Guards a mask that is laid over an image of another size."""
    large = row().edited.resize((32, 32), Image.Resampling.NEAREST)
    assert value("l1_background", row(edited=large)) == pytest.approx(0.75 * 0.2, abs=0.01)


def test_an_edited_region_that_is_nowhere_is_missing(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip-vit-large-patch14")
    found = value("clip_t_edited", row(mask=Image.new("L", (16, 16))), weights=tmp_path)
    assert isinstance(found, Missing) and "leaves no edited part" in found.reason
