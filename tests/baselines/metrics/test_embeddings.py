"""CLIP and DINO metrics with tiny random models: each number made again from the model and the library's processor."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import AURORA_FILE, photographs, sample, waves
from tiny_encoders import save_clip, save_dino, save_dinov2
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from baselines.metrics import embeddings
from baselines.metrics.image_metric import AbsentMetric, EditedSample, ImageMetric, Missing
from baselines.metrics.measuring import metric_named
from baselines.metrics.perceptual import StructureDistance, _scaled_size
from emu3.errors import UserError

# float32 through two layers; batches of several images sum in another order than one.
CLOSE = {"abs": 1e-5}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_clip(folder / "clip-vit-base-patch32")
    save_clip(folder / "clip-vit-large-patch14")
    save_dinov2(folder / "dinov2-base")
    save_dino(folder / "dino-vitb8")
    return folder


def loaded(name: str, weights: Path) -> ImageMetric:
    metric = metric_named(name, weights)
    assert isinstance(metric, ImageMetric) and not isinstance(metric, AbsentMetric) and metric.name == name
    return metric


def rows() -> list[EditedSample]:
    """Wide, tall and square images, one without target."""
    made = [sample(seed, edited=waves(seed, *size)) for seed, size in enumerate([(60, 40), (32, 50), (32, 32)])]
    return [*made, sample(7, target=None)]


def clip_image(folder: Path, image: Image.Image) -> Tensor:
    processor, model = CLIPImageProcessorPil.from_pretrained(folder), CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        return model.get_image_features(**processor(images=[image], return_tensors="pt")).pooler_output


def clip_text(folder: Path, text: str) -> Tensor:
    tokenizer, model = CLIPTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder)
    ids = tokenizer([text], truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        return model.get_text_features(**ids).pooler_output


@pytest.mark.parametrize(("name", "side"), [("clip_i", "target"), ("clip_i_source", "source")])
def test_clip_i_is_the_cosine_of_the_librarys_embeddings(weights: Path, name: str, side: str) -> None:
    folder = weights / "clip-vit-base-patch32"
    for row, value in zip(rows(), loaded(name, weights).score(rows()), strict=True):
        other = getattr(row, side)
        if other is None:
            assert value == Missing("the sample has no target image")
        else:
            expected = cosine_similarity(clip_image(folder, row.edited), clip_image(folder, other)).item()
            assert value == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(("name", "text"), [("clip_t", "target_caption"), ("clip_instruction", "instruction")])
def test_clip_with_a_text(weights: Path, name: str, text: str) -> None:
    """Texts of several lengths in one batch: padding must not be read, and a long one is cut and not refused."""
    folder = weights / "clip-vit-large-patch14"
    texts = ["a cat", "two dogs", "x", "a very long sentence about nothing at all"]
    samples = [sample(seed, **{text: words}) for seed, words in enumerate(texts)]
    for row, words, value in zip(samples, texts, loaded(name, weights).score(samples), strict=True):
        expected = cosine_similarity(clip_image(folder, row.edited), clip_text(folder, words)).item()
        assert value == pytest.approx(expected, **CLOSE)


def test_clip_direction(weights: Path) -> None:
    """Steps between unit embeddings, after minus before on both sides: one sign lost turns the edit round."""
    folder = weights / "clip-vit-large-patch14"

    def unit(embedding: Tensor) -> Tensor:
        return embedding / embedding.norm()

    samples = [sample(0), sample(1, source_caption="red", target_caption="blue")]
    for row, value in zip(samples, loaded("clip_direction", weights).score(samples), strict=True):
        assert row.source_caption and row.target_caption
        seen = unit(clip_image(folder, row.edited)) - unit(clip_image(folder, row.source))
        told = unit(clip_text(folder, row.target_caption)) - unit(clip_text(folder, row.source_caption))
        assert value == pytest.approx(cosine_similarity(seen, told).item(), abs=1e-4)


def test_captions_that_are_not_there_are_no_empty_texts(weights: Path) -> None:
    """CLIP embeds an empty caption like any other, and gave a number for it."""
    samples = [sample(target_caption=None), sample(), sample(target_caption="")]
    for name in ("clip_t", "clip_direction"):
        first, second, third = loaded(name, weights).score(samples)
        assert isinstance(first, Missing) and "caption" in first.reason
        assert isinstance(second, float)
        assert third == first


def test_no_edit_has_no_direction(weights: Path) -> None:
    """0 / 0 came out as 0: an untouched image looked better than one edited the wrong way."""
    untouched = sample(edited=waves(0), source=waves(0))
    same_words = sample(source_caption="a cat", target_caption="a cat")
    for result in loaded("clip_direction", weights).score([untouched, same_words]):
        assert isinstance(result, Missing) and "no direction" in result.reason


def test_clip_images_are_scaled_cropped_and_normalized_as_published(weights: Path) -> None:
    """By hand: shortest side bicubic to 32, middle square, CLIP's mean and deviation."""
    image = waves(0, 60, 40)
    scaled = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC), np.float32)[:, 8:40] / 255
    mean, deviation = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    expected = torch.from_numpy((scaled - mean) / deviation).float().permute(2, 0, 1)
    encoder = embeddings.clip_encoder(embeddings.CLIP_LARGE, weights)
    given = encoder._processor(images=[image], return_tensors="pt")["pixel_values"][0]
    # The mean is subtracted in float64 here.
    assert torch.allclose(given, expected, atol=1e-5)


def test_many_images_go_in_batches(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last, smaller batch was lost or mixed with the first."""
    samples = [sample(seed) for seed in range(5)]
    at_once = [loaded(name, weights).score(samples) for name in ("clip_i", "clip_t", "dino")]
    monkeypatch.setattr(embeddings, "BATCH", 2)
    for name, expected in zip(("clip_i", "clip_t", "dino"), at_once, strict=True):
        assert loaded(name, weights).score(samples) == pytest.approx(expected, **CLOSE)


def test_dino_is_the_cosine_of_class_tokens(weights: Path) -> None:
    folder = weights / "dinov2-base"
    model = save_dinov2(folder)
    processor = BitImageProcessorPil.from_pretrained(folder)

    def embed(image: Image.Image) -> Tensor:
        with torch.no_grad():
            return model(**processor(images=[image], return_tensors="pt")).last_hidden_state[:, 0]

    made = rows()
    values = loaded("dino", weights).score(made)
    for row, value in zip(made[:3], values, strict=False):
        assert row.target is not None
        assert value == pytest.approx(cosine_similarity(embed(row.edited), embed(row.target)).item(), **CLOSE)
    assert values[3] == Missing("the sample has no target image")


def test_structure_distance_is_that_of_the_last_layers_keys(weights: Path) -> None:
    """The keys that the attention itself computed, caught on their way, cosines one by one."""
    model = save_dino(weights / "dino-vitb8")
    caught: list[Tensor] = []
    model.layers[-1].attention.k_proj.register_forward_hook(lambda *call: caught.append(call[2][0]))

    def table(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        # 60x40 becomes 336x224.
        scaled = torch.nn.functional.interpolate(pixels, (224, 336), mode="bilinear")
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            model((scaled - mean) / deviation, interpolate_pos_encoding=True)
        keys = caught.pop()
        return torch.stack([cosine_similarity(key[None], keys) for key in keys])

    row = sample(edited=waves(0, 60, 40), source=waves(1, 60, 40))
    expected = (table(row.edited) - table(row.source)).square().mean().item()
    assert table(row.edited).shape == (1 + 28 * 42,) * 2
    (value,) = loaded("structure_distance_source", weights).score([row])
    assert expected > 1e-6
    assert value == pytest.approx(expected, rel=1e-3)


def test_structure_distance_of_equal_images_is_zero(weights: Path) -> None:
    metric = loaded("structure_distance", weights)
    assert isinstance(metric, StructureDistance)
    assert metric.score([sample(target=waves(100))]) == [0.0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((256, 256), (224, 224)), ((256, 384), (224, 336)), ((384, 256), (336, 224)), ((100, 300), (160, 480))],
)
def test_structure_distance_scales_the_shorter_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """torchvision's Resize(224, max_size=480)."""
    assert _scaled_size(*size) == expected


@pytest.mark.parametrize("name", ["clip_i", "clip_direction", "dino", "structure_distance"])
def test_folder_with_another_model_is_refused(name: str, weights: Path, tmp_path: Path) -> None:
    """transformers fills what is lacking with random numbers and only warns."""
    other = "clip-vit-base-patch32" if name in ("dino", "structure_distance") else "dinov2-base"
    for folder in ("clip-vit-base-patch32", "clip-vit-large-patch14", "dinov2-base", "dino-vitb8"):
        (tmp_path / folder).symlink_to(weights / other)
    with pytest.raises(UserError, match=r"lacks \d+ tensors|cannot be loaded"):
        metric_named(name, tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json"])
def test_clip_folder_that_is_not_whole(file: str, weights: Path, tmp_path: Path) -> None:
    """Without its file the tokenizer was empty, and every text had the same embedding."""
    copy = tmp_path / "clip-vit-large-patch14"
    shutil.copytree(weights / copy.name, copy)
    (copy / file).unlink()
    with pytest.raises(UserError, match="lacks CLIP's"):
        metric_named("clip_t", tmp_path)


def test_version_names_library_and_weights(weights: Path, tmp_path: Path) -> None:
    """Two tables made with different weights said the same."""
    version = loaded("dino", weights).version
    assert version.startswith("transformers ") and "facebook/dinov2-base" in version
    model = save_dinov2(tmp_path / "dinov2-base")
    with torch.no_grad():
        model.layernorm.bias += 1
    model.save_pretrained(tmp_path / "dinov2-base")
    assert loaded("dino", tmp_path).version != version


@pytest.mark.skipif(not AURORA_FILE.exists(), reason="photographs are not there")
@pytest.mark.parametrize("name", ["clip_i", "dino", "structure_distance"])
def test_photographs_of_any_size_get_a_number(weights: Path, name: str) -> None:
    for value in loaded(name, weights).score(photographs(3)):
        assert isinstance(value, float) and np.isfinite(value)
