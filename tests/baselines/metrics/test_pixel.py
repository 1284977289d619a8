"""L1, L2, PSNR and SSIM against scikit-image and torchmetrics, on synthetic images and on photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import AURORA_FILE, photographs, sample, waves

from baselines.metrics.image_metric import EditedSample, ImageMetric, Missing
from baselines.metrics.measuring import metric_named

skimage = pytest.importorskip("skimage.metrics")
torchmetrics = pytest.importorskip("torchmetrics.functional")


def score(name: str, rows: Sequence[EditedSample]) -> list[float | Missing]:
    metric = metric_named(name)
    assert isinstance(metric, ImageMetric) and metric.name == name
    return metric.score(rows)


def synthetic() -> list[EditedSample]:
    sizes = [(48, 40), (64, 32), (48, 40)]
    return [sample(edited=waves(seed, *size), target=waves(seed + 9, *size)) for seed, size in enumerate(sizes)]


def photos() -> list[EditedSample]:
    if not AURORA_FILE.exists():
        pytest.skip("photographs are not there")
    return photographs(4)


@pytest.fixture(params=[synthetic, photos])
def rows(request: pytest.FixtureRequest) -> list[EditedSample]:
    made: list[EditedSample] = request.param()
    return made


def arrays(row: EditedSample) -> tuple[np.ndarray, np.ndarray]:
    assert row.target is not None
    return np.asarray(row.edited, np.float64) / 255, np.asarray(row.target, np.float64) / 255


def tensors(row: EditedSample) -> tuple[torch.Tensor, torch.Tensor]:
    edited, target = (torch.from_numpy(array.transpose(2, 0, 1)[None].copy()) for array in arrays(row))
    return edited, target


# All are float64 sums over the same levels; only the order of summation differs.
CLOSE = {"rel": 1e-9, "abs": 1e-12}
# SSIM is computed in float32: a variance is off by 1e-7, its quotient by that over K2^2 = 9e-4, in either direction.
FLOAT32 = 1e-5


def test_l1_and_l2_equal_the_libraries(rows: list[EditedSample]) -> None:
    l1, l2 = score("l1", rows), score("l2", rows)
    for row, first, second in zip(rows, l1, l2, strict=True):
        edited, target = tensors(row)
        assert first == pytest.approx(torchmetrics.mean_absolute_error(edited, target).item(), **CLOSE)
        assert second == pytest.approx(torchmetrics.mean_squared_error(edited, target).item(), **CLOSE)
        assert second == pytest.approx(skimage.mean_squared_error(*arrays(row)), **CLOSE)


def test_psnr_equals_the_libraries(rows: list[EditedSample]) -> None:
    for row, value in zip(rows, score("psnr", rows), strict=True):
        edited, target = tensors(row)
        assert value == pytest.approx(skimage.peak_signal_noise_ratio(*arrays(row), data_range=1), **CLOSE)
        by_torchmetrics = torchmetrics.image.peak_signal_noise_ratio(edited, target, data_range=1.0).item()
        # torchmetrics keeps its data range in float32.
        assert value == pytest.approx(by_torchmetrics, rel=1e-6)


def test_ssim_equals_scikit_image(rows: list[EditedSample]) -> None:
    """Borders, window or covariance taken otherwise move SSIM in the third digit, unseen."""
    for row, value in zip(rows, score("ssim", rows), strict=True):
        reference = skimage.structural_similarity(
            *arrays(row), channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert value == pytest.approx(reference, abs=FLOAT32)


def test_ssim_is_torchmetrics_without_its_border(rows: list[EditedSample]) -> None:
    index = torchmetrics.image.structural_similarity_index_measure
    for row, value in zip(rows, score("ssim", rows), strict=True):
        with_border, local = index(*(side.float() for side in tensors(row)), data_range=1.0, return_full_image=True)
        assert value == pytest.approx(local[..., 5:-5, 5:-5].mean().item(), abs=FLOAT32)
        # The border is a few percent of the area.
        assert value == pytest.approx(with_border.item(), abs=0.05)


def test_known_distances() -> None:
    """51 levels of 255 are 0.2: a data range of 255, or a root, would show at once."""
    grey = [sample(edited=Image.new("RGB", (16, 16), (151,) * 3), target=Image.new("RGB", (16, 16), (100,) * 3))]
    assert score("l1", grey) == [pytest.approx(0.2)]
    assert score("l2", grey) == [pytest.approx(0.04)]
    assert score("psnr", grey) == [pytest.approx(13.9794, abs=1e-4)]


def test_equal_images_have_no_psnr() -> None:
    """100 dB, or 0, for an untouched image was averaged with real numbers."""
    row = sample(target=waves(100))
    assert score("psnr", [row]) == [Missing("edited image and target are equal: the PSNR is infinite")]
    assert score("ssim", [row]) == [pytest.approx(1)]
    assert score("l1", [row]) == [0.0]


def test_an_image_smaller_than_the_window_has_no_ssim() -> None:
    small = [sample(edited=waves(0, 30, 10), target=waves(1, 30, 10))]
    assert score("ssim", small) == [Missing("a side is shorter than the SSIM's window of 11 pixels")]


def test_source_metrics_need_no_target() -> None:
    row = sample(target=None)
    assert score("l1", [row]) == [Missing("the sample has no target image")]
    expected = np.abs(np.asarray(row.edited, float) - np.asarray(row.source, float)).mean() / 255
    assert score("l1_source", [row]) == [pytest.approx(expected)]
