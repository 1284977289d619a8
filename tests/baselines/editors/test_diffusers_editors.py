"""Editors over real diffusers pipelines with tiny random weights, on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from noise_images import noise
from PIL import Image

from baselines.benchmarks.samples import Sample
from baselines.editors import diffusers_editors
from baselines.editors.editing import ChosenEditor, Edited, EditorOptions
from baselines.evaluate import choose_editor
from emu3.errors import UserError

pytest.importorskip("diffusers", reason="the extra eval is not installed")
from tiny_pipelines import save_omnigen, save_pix2pix


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pix2pix(tmp_path_factory.mktemp("pix2pix") / "model")


def sample(seed: int, width: int, height: int, instruction: str = "make it red") -> Sample:
    return Sample(str(seed), "task", "all", "", instruction, noise(seed, width, height), None)


def edit(chosen: ChosenEditor, samples: Sequence[Sample], seed: int = 0) -> list[Image.Image]:
    with chosen.load() as editor:
        assert not callable(editor)
        results = editor.edit([one.source for one in samples], [one.instruction for one in samples], seed)
    return [result.image for result in results if isinstance(result, Edited)]


def chosen(kind: str, folder: Path, **options: Any) -> ChosenEditor:
    return choose_editor(kind, EditorOptions(model=str(folder), steps=2, **options), 1024)


def test_pix2pix_edits_each_image_at_its_own_size(pix2pix: Path) -> None:
    """Guards a batch of several sizes, all of which the pipeline alone would bring to the first one's; and that an
    image does not depend on which others are in the call."""
    samples = [sample(0, 32, 24), sample(1, 20, 32), sample(2, 32, 24)]
    together = edit(chosen("instruct-pix2pix", pix2pix), samples)
    assert [image.size for image in together] == [(32, 24), (16, 32), (32, 24)]
    first = edit(chosen("instruct-pix2pix", pix2pix), samples[:2])
    for one, other in zip(first, together, strict=False):
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= 1


def test_the_seed_and_the_instruction_decide(pix2pix: Path) -> None:
    """Guards noise that is not seeded, one noise for a whole batch, and prompts that go to other images."""
    editor = chosen("instruct-pix2pix", pix2pix)
    [again] = edit(editor, [sample(0, 24, 24)])
    [first, twin] = edit(editor, [sample(0, 24, 24), sample(0, 24, 24)])
    assert np.abs(np.asarray(first, float) - np.asarray(again, float)).max() <= 1
    assert first.tobytes() != twin.tobytes()
    assert edit(editor, [sample(0, 24, 24)], seed=1)[0].tobytes() != again.tobytes()
    assert edit(editor, [sample(0, 24, 24, "a blue sky")])[0].tobytes() != again.tobytes()


def test_samplers_and_scales_are_the_published_ones(pix2pix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the baselines' numbers: Euler ancestral for two, the checkpoint's for AURORA; 100 steps, 7.5 and 1.5."""
    from diffusers import StableDiffusionInstructPix2PixPipeline as Pipeline

    calls: list[tuple[str, dict[str, Any]]] = []

    def noted(pipeline: Pipeline, **settings: Any) -> SimpleNamespace:
        calls.append((type(pipeline.scheduler).__name__, settings))
        return SimpleNamespace(images=settings["image"])

    monkeypatch.setattr(Pipeline, "__call__", noted)
    for kind in ("instruct-pix2pix", "magicbrush", "aurora"):
        editor = choose_editor(kind, EditorOptions(model=str(pix2pix)), 1024)
        assert editor.settings["steps"] == 100 and editor.equal_sizes
        edit(editor, [sample(0, 24, 24)])
    euler = "EulerAncestralDiscreteScheduler"
    assert [scheduler for scheduler, _ in calls] == [euler, euler, "PNDMScheduler"]
    for _, settings in calls:
        assert (settings["num_inference_steps"], settings["guidance_scale"]) == (100, 7.5)
        assert settings["image_guidance_scale"] == 1.5


def test_what_decides_the_images_is_in_the_settings(pix2pix: Path, tmp_path: Path) -> None:
    """Guards the weights' fingerprint: of contents, not of the folder's name, and of every part."""
    copy = shutil.copytree(pix2pix, tmp_path / "copy")
    before = chosen("aurora", pix2pix).settings
    assert chosen("aurora", copy).settings == before
    config = copy / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    assert chosen("aurora", copy).settings["weights"] != before["weights"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/w.bin"),
         r"has no unet/\*.safetensors, and pickled weights are not read"),
        (lambda folder: (folder / "model_index.json").unlink(), "is no diffusers pipeline"),
        (lambda folder: (folder / "text_encoder/config.json").write_text("{}"), "cannot be loaded as a StableDiff"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_pipeline(pix2pix: Path, tmp_path: Path, damage: Any, message: str) -> None:
    copy = shutil.copytree(pix2pix, tmp_path / "copy")
    damage(copy)
    with pytest.raises(UserError, match=message) as error, chosen("aurora", copy).load():
        pass
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, pix2pix: Path) -> None:
    monkeypatch.setattr(diffusers_editors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package diffusers: pip install"):
        chosen("aurora", pix2pix)


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four names of torchvision that OmniGen's processor calls, where torchvision is not installed."""
    from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

    def to_tensor(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)

    def compose(steps: list[Any]) -> Any:
        def run(value: Any) -> Any:
            for step in steps:
                value = step(value)
            return value

        return run

    names = SimpleNamespace(
        Compose=compose,
        Lambda=lambda function: function,
        ToTensor=lambda: to_tensor,
        Normalize=lambda mean, std, inplace: lambda tensor: (tensor - 0.5) / 0.5,
    )
    monkeypatch.setattr(processor_omnigen, "transforms", names, raising=False)
    processor = processor_omnigen.OmniGenMultiModalProcessor
    monkeypatch.setattr(pipeline_omnigen, "OmniGenMultiModalProcessor", processor, raising=False)
    find_spec = diffusers_editors.importlib.util.find_spec
    monkeypatch.setattr(
        diffusers_editors.importlib.util, "find_spec", lambda name: name == "torchvision" or find_spec(name)
    )


def test_omnigen_gives_the_shape_of_the_source(
    tmp_path: Path, transforms: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards a judge against a square image beside a source that is none, and the batch against one noise."""
    monkeypatch.setattr("baselines.editors.diffusers_editors.OMNIGEN_SIDE", 32)
    editor = chosen("omnigen", save_omnigen(tmp_path / "omnigen"))
    first, second, twin = edit(editor, [sample(0, 40, 24), sample(1, 24, 32), sample(1, 24, 32)])
    assert [first.size, second.size] == [(40, 24), (24, 32)]
    assert second.tobytes() != twin.tobytes()
    assert edit(editor, [sample(0, 40, 24)], seed=1)[0].tobytes() != first.tobytes()
    assert (editor.settings["guidance"], editor.settings["image_guidance"], editor.batch_size) == (2.0, 1.6, 10)
