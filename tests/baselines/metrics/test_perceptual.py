"""LPIPS against torchmetrics on one random network, and ST-LPIPS with its real weights where its package is there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import AURORA_FILE, photographs, sample, waves

from baselines.metrics.image_metric import AbsentMetric, ImageMetric, Missing
from baselines.metrics.measuring import metric_named
from baselines.metrics.perceptual import FeatureStages, squeezenet
from emu3.errors import UserError

torchmetrics_lpips = pytest.importorskip("torchmetrics.functional.image.lpips")


@pytest.fixture
def network() -> FeatureStages:
    torch.manual_seed(0)
    return squeezenet()


def publish(state: dict[str, torch.Tensor], folder: Path) -> Path:
    """Save as torchvision publishes: the first digits of the SHA-256 in the name."""
    torch.save(state, folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
    return (folder / "weights.pth").rename(folder / f"squeezenet1_1-{digest}.pth")


def score(name: str, weights: Path | None, edited: Image.Image, target: Image.Image) -> float | Missing:
    metric = metric_named(name, weights)
    assert isinstance(metric, ImageMetric)
    return metric.score([sample(edited=edited, target=target)])[0]


def test_lpips_equals_torchmetrics(network: FeatureStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same network and same heads: a stage cut elsewhere, another range or a lost square root changes the number."""
    publish(network.state_dict(), tmp_path)
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *_: network.features)
    reference = torchmetrics_lpips._NoTrainLpips(net="squeeze", pnet_rand=True)
    for seed in range(3):
        edited, target = waves(seed, 64, 50), waves(seed + 9, 64, 50)
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in (edited, target)]
        # float32 sums of a few thousand terms in another order.
        assert score("lpips", tmp_path, edited, target) == pytest.approx(
            reference(*pixels, normalize=True).item(), rel=1e-4
        )


def test_squeezenet_has_the_published_layers() -> None:
    """Its published file has 722,496 numbers below the classifier, in 50 tensors; other names would not load."""
    state = squeezenet().state_dict()
    assert len(state) == 50
    assert sum(tensor.numel() for tensor in state.values()) == 722_496
    assert state["features.12.expand3x3.weight"].shape == (256, 64, 3, 3)


def test_equal_images_are_at_distance_zero(network: FeatureStages, tmp_path: Path) -> None:
    publish(network.state_dict(), tmp_path)
    assert score("lpips", tmp_path, waves(0), waves(0)) == 0


def test_images_too_small_for_the_network_have_a_reason(network: FeatureStages, tmp_path: Path) -> None:
    publish(network.state_dict(), tmp_path)
    result = score("lpips", tmp_path, waves(0, 40, 20), waves(1, 40, 20))
    assert isinstance(result, Missing) and "32 pixels" in result.reason


def test_file_that_is_not_what_its_name_says(network: FeatureStages, tmp_path: Path) -> None:
    """A download that was cut short loaded as far as it went."""
    file = publish(network.state_dict(), tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is broken"):
        metric_named("lpips", tmp_path)


def test_file_of_another_network(tmp_path: Path) -> None:
    """Tensors that are lacking would stay random, and the distance would still look like one."""
    publish({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path)
    with pytest.raises(UserError, match="another network"):
        metric_named("lpips", tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_file_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .pth is a pickle: an unrestricted reader runs what it holds."""
    monkeypatch.chdir(tmp_path)
    publish({"features.0.weight": Bomb()}, tmp_path)  # type: ignore[dict-item]
    with pytest.raises(UserError, match="no file of tensors"):
        metric_named("lpips", tmp_path)
    assert not Path("exploded").exists()


def test_without_weights_there_is_a_reason_and_no_number(tmp_path: Path) -> None:
    """Random weights give a distance too; nobody would have seen it."""
    metric = metric_named("lpips", tmp_path)
    assert isinstance(metric, AbsentMetric)
    (result,) = metric.score([sample()])
    assert isinstance(result, Missing) and "squeezenet1_1-b8a52dc0.pth" in result.reason


@pytest.fixture
def st_lpips() -> ImageMetric:
    metric = metric_named("st_lpips")
    assert isinstance(metric, ImageMetric)
    if isinstance(metric, AbsentMetric):
        pytest.skip("stlpips-pytorch is not installed")
    return metric


def test_st_lpips_equals_its_own_package(st_lpips: ImageMetric) -> None:
    """Numbers of stlpips_pytorch 0.0.2's own code (variant shift_tolerant, AlexNet) for the same two images."""
    data = pytest.importorskip("skimage.data")
    astronaut, cat = (Image.fromarray(image).resize((256, 256)) for image in (data.astronaut(), data.chelsea()))
    rows = [sample(edited=astronaut, target=cat), sample(edited=astronaut, target=astronaut)]
    # The package adds its epsilon to the length, this code below the root.
    assert st_lpips.score(rows) == [pytest.approx(0.690514, abs=2e-6), 0.0]


@pytest.mark.skipif(not AURORA_FILE.exists(), reason="photographs are not there")
def test_st_lpips_orders_changes_of_photographs_as_the_eye_does(st_lpips: ImageMetric) -> None:
    """A shift by a pixel is hardly seen, noise is, another photograph is furthest: a wrong layer breaks the order."""
    rows = photographs(3)
    other = photographs(4)[-1].source
    for row in rows:
        image = row.source.resize((192, 192))
        pixels = np.asarray(image)
        shifted = Image.fromarray(np.roll(pixels, 1, axis=1))
        noise = np.random.default_rng(0).normal(0, 12, pixels.shape)
        noisy = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        edits = (image, shifted, noisy, other.resize((192, 192)))
        distances = st_lpips.score([sample(edited=edit, target=image) for edit in edits])
        assert distances[0] == 0
        assert distances == sorted(distances, key=float)  # type: ignore[arg-type]
