"""Fréchet distance against Gaussians worked out by hand and against scipy, on networks of a few features."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import sample, waves
from scipy.linalg import sqrtm
from torch import Tensor, nn

from baselines.metrics import fid
from baselines.metrics.fid import Fid
from baselines.metrics.image_metric import AbsentSetMetric, EditedSample, Missing, SetMetric
from baselines.metrics.measuring import metric_named

pytest.importorskip("torchmetrics")


class FirstPixel(nn.Module):
    """Red and green of the first pixel."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, :2, 0, 0].double()


class Convolved(nn.Module):
    """Five random features of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 5, 7).double()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.convolution(pixels.double() / 255).abs().mean((2, 3))


def plain(red: int, green: int, size: int = 4) -> Image.Image:
    return Image.new("RGB", (size, size), (red, green, 0))


def test_two_gaussians_worked_out_by_hand() -> None:
    """Red: 100, 104 against 120, 132, so means 102 and 126, variances 8 and 72; green constant, 5 apart.

    24^2 + 5^2 + 8 + 72 - 2 sqrt(8 * 72) = 576 + 25 + 32.
    """
    rows = [
        sample(edited=plain(100, 10), target=plain(120, 15)),
        sample(edited=plain(104, 10, size=6), target=plain(132, 15)),
    ]
    assert Fid(FirstPixel(), 2, "first pixel").score_set(rows) == (pytest.approx(633, rel=1e-6), 2)


def test_equals_scipy_on_a_random_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, sizes and the two sides must not mix: edited images counted as targets still give a number."""
    monkeypatch.setattr(fid, "ROWS_AT_ONCE", 4)
    sizes = [(48, 40), (40, 48), (32, 32)]
    rows = [sample(seed, edited=waves(seed + 50, *sizes[seed % 3])) for seed in range(11)]
    network = Convolved()

    def gaussian(side: str) -> tuple[np.ndarray, np.ndarray]:
        images = [torch.from_numpy(np.array(getattr(row, side))).permute(2, 0, 1)[None] for row in rows]
        with torch.no_grad():
            features = torch.cat([network(image) for image in images]).numpy()
        return features.mean(0), np.cov(features, rowvar=False)

    (mean, covariance), (other_mean, other_covariance) = gaussian("edited"), gaussian("target")
    root = sqrtm(covariance @ other_covariance).real
    expected = ((mean - other_mean) ** 2).sum() + np.trace(covariance + other_covariance - 2 * root)
    result = Fid(network, 5, "random").score_set(row for row in rows)
    # Roots of eigenvalues near zero carry half the digits of float64.
    assert result == (pytest.approx(expected, rel=1e-6), 11)


def test_rows_without_target_are_left_out_and_not_counted() -> None:
    rows = [sample(seed) for seed in range(6)]
    metric = Fid(Convolved(), 5, "random")
    without = metric.score_set(rows)
    assert not isinstance(without, Missing) and without[1] == 6
    assert metric.score_set([rows[0], sample(9, target=None), *rows[1:]]) == without


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_have_a_reason(count: int) -> None:
    result = Fid(Convolved(), 5, "random").score_set([sample()] * count)
    assert isinstance(result, Missing) and f"there are {count}" in result.reason


def test_warns_below_full_rank_only() -> None:
    """With fewer samples than features the figure is mostly bias."""
    rows = [sample(seed) for seed in range(5)]
    with pytest.warns(UserWarning, match="over 4 samples on 5 features"):
        Fid(Convolved(), 5, "random").score_set(rows[:4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Fid(Convolved(), 5, "random").score_set(rows)


def test_rows_may_come_one_by_one() -> None:
    """Thousands of images do not fit into memory: a generator must be enough, and be gone through once."""
    seen = []

    def rows() -> Iterator[EditedSample]:
        for seed in range(6):
            seen.append(seed)
            yield sample(seed)

    result = Fid(Convolved(), 5, "random").score_set(rows())
    assert not isinstance(result, Missing) and result[1] == 6
    assert seen == [0, 1, 2, 3, 4, 5]


def test_without_inception_there_is_a_reason_and_no_number(tmp_path: Path) -> None:
    metric = metric_named("fid", tmp_path)
    assert isinstance(metric, SetMetric) and isinstance(metric, AbsentSetMetric)
    assert isinstance(metric.score_set([sample(), sample(1)]), Missing)
