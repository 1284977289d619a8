"""Released vision tokenizers: every layout on disk gives the codes and pixels of the network that was saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from temporal_vq import random_images, random_temporal_vq, temporal_codes
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig, Emu3VQVAE

from emu3 import tensor_files
from emu3.errors import UserError
from emu3.tokenizer.blocks import Parts
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.random_vision import save_baai
from emu3.tokenizer.vision_checkpoint import weights_digest

SHARD = 150_000


@pytest.fixture(scope="module")
def temporal() -> Emu3VQVAE:
    """Two levels, attention at the second: small, with every kind of layer."""
    return random_temporal_vq(
        channel_multiplier=(1, 2), attn_resolutions=(1,), num_res_blocks=1, hidden_size=64, codebook_size=256
    )


def converted(temporal: Emu3VQVAE) -> Emu3ForConditionalGeneration:
    """`temporal` inside a small Emu3 as transformers converts it."""
    text = Emu3TextConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = Emu3Config(vq_config=temporal.config.to_dict(), text_config=text, vocabulary_map={"<image>": 3})
    model = Emu3ForConditionalGeneration(config).double()
    model.model.vqmodel.load_state_dict(temporal.state_dict())
    return model


def save_own(temporal: Emu3VQVAE, folder: Path) -> None:
    StillVQ.from_transformers(temporal).save_pretrained(folder)


def save_converted_otherwise(temporal: Emu3VQVAE, folder: Path) -> None:
    """With the names that the model has in memory, which older conversions have on disk."""
    converted(temporal).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


LAYOUTS: dict[str, Callable[[Emu3VQVAE, Path], None]] = {
    "own": save_own,
    "BAAI": save_baai,
    "BAAI, sharded": lambda temporal, folder: save_baai(temporal, folder, max_shard_size=SHARD),
    "transformers": lambda temporal, folder: temporal.save_pretrained(folder),
    "transformers, sharded": lambda temporal, folder: temporal.save_pretrained(folder, max_shard_size=SHARD),
    "converted": lambda temporal, folder: converted(temporal).save_pretrained(folder),
    "converted, sharded": lambda temporal, folder: converted(temporal).save_pretrained(folder, max_shard_size=SHARD),
    "converted, other prefix": save_converted_otherwise,
}


@pytest.fixture(scope="module")
def saved(temporal: Emu3VQVAE, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {layout: tmp_path_factory.mktemp("saved") / "vision" for layout in LAYOUTS}
    for layout, save in LAYOUTS.items():
        save(temporal, folders[layout])
        assert (folders[layout] / "model.safetensors.index.json").exists() == ("sharded" in layout)
    return folders


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_and_pixels_of_every_layout(temporal: Emu3VQVAE, saved: dict[str, Path], layout: str) -> None:
    """No code differs in fp64, where there are no ties; a tensor under a wrong name would change most of them."""
    still = StillVQ.from_pretrained(saved[layout])
    assert still.quantizer.codebook.dtype == torch.float64
    for height, width in ((16, 24), (15, 10), (9, 31)):
        images = random_images(2, height, width, seed=height)
        codes = temporal_codes(temporal, images)
        assert torch.equal(still.encode(images), codes)
        with torch.no_grad():
            torch.testing.assert_close(still.decode(codes), temporal.decode(codes), rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", ["own", "BAAI", "transformers", "converted"])
def test_pixels_in_float32(temporal: Emu3VQVAE, saved: dict[str, Path], layout: str) -> None:
    """The dtype that is asked for, within a hundredth of a grey level of the network in fp64."""
    still = StillVQ.from_pretrained(saved[layout], dtype=torch.float32)
    codes = temporal_codes(temporal, random_images(1, 16, 24, seed=0))
    with torch.no_grad():
        expected = temporal.decode(codes).float()
    pixels = still.decode(codes)
    assert pixels.dtype == still.quantizer.codebook.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-4)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the tensors that are read."""
    names: set[str] = set()
    plain = tensor_files.TensorFiles.__getitem__

    def record(self: tensor_files.TensorFiles, name: str) -> torch.Tensor:
        names.add(name)
        return plain(self, name)

    monkeypatch.setattr(tensor_files.TensorFiles, "__getitem__", record)
    return names


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_only_the_half_that_is_asked_for_is_read(
    temporal: Emu3VQVAE, saved: dict[str, Path], read: set[str], layout: str, part: Parts
) -> None:
    """Half of a gigabyte, and in a converted model the language model beside it, would be read to be thrown away."""
    half = StillVQ.from_pretrained(saved[layout], parts=part)
    other = "decoder" if part == "encoder" else "encoder"
    tops = {name.split(".")[0] for name in read}
    assert tops <= {part, "quant_conv" if part == "encoder" else "post_quant_conv", "quantize", "quantizer"}
    assert not any(name.startswith(other) for name in half.state_dict())
    images = random_images(1, 16, 24, seed=1)
    codes = temporal_codes(temporal, images)
    if part == "encoder":
        assert torch.equal(half.encode(images), codes)
    else:
        with torch.no_grad():
            torch.testing.assert_close(half.decode(codes), temporal.decode(codes), rtol=0, atol=1e-10)


def baai_names(levels: int, blocks: int, attention: int, halvings: int) -> dict[str, int]:
    """Tensor names of BAAI's published network, and their numbers of axes, written down from its module tree."""
    names: dict[str, int] = {}

    def layer(name: str, axes: int) -> None:
        names[f"{name}.weight"], names[f"{name}.bias"] = axes, 1

    def norm(name: str, spatial: bool) -> None:
        if spatial:
            for part, axes in (("norm_layer", 1), ("conv_y", 4), ("conv_b", 4)):
                layer(f"{name}.{part}", axes)
        else:
            layer(name, 1)

    def block(name: str, spatial: bool, widened: bool) -> None:
        for part in ("1", "2"):
            norm(f"{name}.norm{part}", spatial)
            layer(f"{name}.conv{part}", 4)
        if widened:
            layer(f"{name}.nin_shortcut", 4)

    def attend(name: str, spatial: bool) -> None:
        norm(f"{name}.norm", spatial)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", 4)

    def latent(name: str) -> None:
        for part in ("1", "2"):
            layer(f"{name}.norm{part}", 1)
            names[f"{name}.norm{part}.running_mean"] = names[f"{name}.norm{part}.running_var"] = 1
            names[f"{name}.norm{part}.num_batches_tracked"] = 0
            layer(f"{name}.conv{part}.conv", 5)

    for half, direction in (("encoder", "down"), ("decoder", "up")):
        spatial = half == "decoder"
        layer(f"{half}.conv_in", 4)
        layer(f"{half}.conv_out", 4)
        norm(f"{half}.norm_out", spatial)
        block(f"{half}.mid.block_1", spatial, widened=False)
        attend(f"{half}.mid.attn_1", spatial)
        block(f"{half}.mid.block_2", spatial, widened=False)
        for level in range(levels):
            # With multipliers 1, 2 the width changes at the encoder's second level and at the decoder's first.
            widest = level == (0 if spatial else 1)
            for index in range(blocks + spatial):
                block(f"{half}.{direction}.{level}.block.{index}", spatial, widened=widest and index == 0)
                if level == attention:
                    attend(f"{half}.{direction}.{level}.attn.{index}", spatial)
        rescaled = f"{half}.{direction}.{'1.upsample' if spatial else '0.downsample'}"
        layer(f"{rescaled}.conv", 4)
        for index in range(halvings):
            layer(f"{half}.time_conv.{index}.conv.conv", 5)
        for index in range(blocks):
            latent(f"{half}.time_res_stack.{index}")
    layer("quant_conv.conv", 5)
    layer("post_quant_conv.conv", 5)
    names["quantize.embedding.weight"] = 2
    return names


def test_names_and_fields_of_the_release(saved: dict[str, Path]) -> None:
    """Writer and reader share one table of names: both could be wrong together. This is the other side's tree."""
    with safe_open(saved["BAAI"] / "model.safetensors", framework="pt") as file:
        axes = {name: len(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert axes == baai_names(levels=2, blocks=1, attention=1, halvings=2)
    assert json.loads((saved["BAAI"] / "config.json").read_text()) == {
        "model_type": "Emu3VisionVQ",
        "codebook_size": 256,
        "embed_dim": 4,
        "z_channels": 4,
        "double_z": False,
        "in_channels": 3,
        "out_channels": 3,
        "temporal_downsample_factor": 4,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [1],
    }


def test_fields_left_out_have_their_published_values(saved: dict[str, Path]) -> None:
    """transformers writes only what differs from a class's defaults in some versions."""
    (saved["BAAI"].parent / "bare").mkdir()
    for model_type in ("Emu3VisionVQ", "emu3_vqgan"):
        config = {"model_type": model_type, "transformers_version": "4.44.0", "dropout": 0.0}
        (saved["BAAI"].parent / "bare" / "config.json").write_text(json.dumps(config))
        save_file({"quantize.embedding.weight": torch.zeros(1)}, saved["BAAI"].parent / "bare" / "model.safetensors")
        with pytest.raises(UserError, match=r"lack 'encoder\.conv_in\.weight'"):
            StillVQ.from_pretrained(saved["BAAI"].parent / "bare")


def test_digest_of_the_weights(saved: dict[str, Path]) -> None:
    """What names a tokenizer in a manifest: of one file its SHA-256, of several that of sha256sum's lines.

    Files without vision tensors must not count: nobody who only encodes needs to have them.
    """
    for layout in ("own", "BAAI", "transformers", "converted"):
        data = (saved[layout] / "model.safetensors").read_bytes()
        assert weights_digest(saved[layout]) == hashlib.sha256(data).hexdigest()
    index = json.loads((saved["converted, sharded"] / "model.safetensors.index.json").read_text())["weight_map"]
    vision = sorted({file for name, file in index.items() if name.startswith("vqmodel.")})
    assert 1 < len(vision) < len(set(index.values()))
    lines = ""
    for file in vision:
        data = (saved["converted, sharded"] / file).read_bytes()
        lines += f"{hashlib.sha256(data).hexdigest()}  {file}\n"
    assert weights_digest(saved["converted, sharded"]) == hashlib.sha256(lines.encode()).hexdigest()


def test_only_files_with_vision_tensors_are_fetched(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The converted model has 35 GB, of which the tokenizer is one."""
    folder, asked = saved["converted, sharded"], set()

    def fetch(name: str | Path, allow: Any = None) -> Path:
        asked.update(allow)
        return folder if name == "BAAI/Emu3-Gen-hf" else Path(name)

    monkeypatch.setattr(tensor_files, "local_folder", fetch)
    names = list(tensor_files.TensorFiles.of("BAAI/Emu3-Gen-hf", ("vqmodel.",)))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    vision = {file for name, file in index.items() if name.startswith("vqmodel.")}
    assert asked == {"model.safetensors.index.json", *vision}
    assert {f"vqmodel.{name}" for name in names} == {name for name in index if name.startswith("vqmodel.")}
