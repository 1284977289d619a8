"""A metric by its name, and what happens where its weights or packages are not there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from sample_images import sample

from baselines.metrics import metric_weights as weights_module
from baselines.metrics.image_metric import AbsentMetric, ImageMetric, Missing, SetMetric
from baselines.metrics.measuring import NAMES, metric_named
from baselines.metrics.metric_weights import MissingDependency, library, torch_file
from emu3.errors import UserError


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no metric 'lpip'.*psnr.*lpips_source.*fid"):
        metric_named("lpip")


def test_folder_of_weights_that_does_not_exist(tmp_path: Path) -> None:
    """A misspelt folder looked like weights that nobody has: every column was skipped."""
    with pytest.raises(UserError, match="does not exist"):
        metric_named("psnr", tmp_path / "weigths")


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_answers_each_row_without_any_weights(name: str, tmp_path: Path) -> None:
    """Name, direction and need of a target must be the same whether the weights are there or not."""
    metric = metric_named(name, tmp_path)
    assert metric.name == name
    seeing_text = {"clip_t", "clip_t_edited", "clip_instruction", "clip_direction"}
    assert metric.needs_target == (not name.endswith(("_source", "_background")) and name not in seeing_text)
    base = name.removesuffix("_source").removesuffix("_background")
    assert metric.higher_is_better == (base in {"psnr", "ssim", "clip_i", "dino"} | seeing_text)
    assert metric.version
    if isinstance(metric, SetMetric):
        assert not hasattr(metric, "score")
        assert isinstance(metric.score_set(iter([sample()])), Missing)
    else:
        assert len(metric.score([sample(), sample(1)])) == 2
        assert metric.score([]) == []


def test_a_folder_of_weights_is_the_only_place_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder given, a model that it lacks was quietly fetched from the Hub."""

    def unwanted(*_: Any, **__: Any) -> None:
        raise AssertionError("went elsewhere")

    monkeypatch.setattr(weights_module, "local_folder", unwanted)
    monkeypatch.setattr(torch.hub, "download_url_to_file", unwanted)
    for name in ("clip_i", "dino", "structure_distance", "lpips"):
        metric = metric_named(name, tmp_path)
        assert isinstance(metric, AbsentMetric) and str(tmp_path) in metric.reason


def test_offline_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingDependency, match="offline"):
        torch_file("https://example.invalid/net-0123abcd.pth", None)


def test_what_cannot_be_fetched_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(MissingDependency, match="no route to host"):
        torch_file("https://example.invalid/net-0123abcd.pth", None)


@pytest.mark.parametrize("trouble", [ImportError("no such module"), RuntimeError("operator nms does not exist")])
def test_package_that_fails_while_it_is_imported_is_absent(trouble: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision of another build raises RuntimeError, and ended the whole scoring."""

    def failing(name: str) -> None:
        raise trouble

    monkeypatch.setattr(importlib, "import_module", failing)
    with pytest.raises(MissingDependency, match="a-package cannot be used"):
        library("a_package", "a-package")


def test_ssim_without_torchmetrics_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    metric = metric_named("ssim")
    assert isinstance(metric, ImageMetric)
    (result,) = metric.score([sample()])
    assert isinstance(result, Missing) and "torchmetrics" in result.reason
