"""Each broken checkpoint of a vision tokenizer ends in one line that names the file or the tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from temporal_vq import random_temporal_vq

from emu3.errors import UserError
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.random_vision import save_baai
from emu3.tokenizer.vision_checkpoint import weights_digest

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three ways on disk that differ in how they break."""
    temporal = random_temporal_vq(
        channel_multiplier=(1,), attn_resolutions=(), num_res_blocks=1, hidden_size=32, codebook_size=64
    )
    root = tmp_path_factory.mktemp("whole")
    save_baai(temporal, root / "BAAI")
    save_baai(temporal, root / "sharded", max_shard_size=50_000)
    StillVQ.from_transformers(temporal).save_pretrained(root / "own")
    return {name: root / name for name in ("BAAI", "sharded", "own")}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(whole[name], tmp_path / "vision"))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        StillVQ.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_no_folder_and_no_config(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "does not exist")
    refused(tmp_path, r"config\.json does not exist")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "Emu3"}, r"config\.json: model_type 'Emu3' is not .* BAAI/Emu3-VisionTokenizer"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": "emu3"}, "model_type 'emu3' is not"),
        ({"double_z": True}, "double_latent True: only False"),
        ({"ch": 48}, "base_channels 48 is not a multiple of 32"),
        ({"ch": "wide"}, r"config\.json"),
        ({"ch_mult": []}, r"config\.json"),
        ({"ch_mult": None}, r"config\.json"),
        (
            {"num_res_blocks": 2},
            r"lack 'encoder\.time_res_stack\.1\.norm1\.running_var'|lack 'encoder\.down\.0\.block\.1",
        ),
        ({"num_res_blocks": 0}, r"unknown.*'decoder"),
        ({"codebook_size": 32}, r"does not hold the weights of its config\.json: .*codebook"),
        ({"ch": 64}, r"does not hold the weights of its config\.json"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(copy: Callable[[str], Path], values: dict[str, Any], message: str) -> None:
    """Also one of the language model, which is the likeliest mistake, and one whose values are no sizes."""
    folder = copy("BAAI")
    change_json(folder / CONFIG, **values)
    refused(folder, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_a_config_that_is_no_object(copy: Callable[[str], Path], text: str) -> None:
    folder = copy("BAAI")
    (folder / CONFIG).write_text(text)
    refused(folder, r"config\.json")


@pytest.mark.parametrize("change", [{"norms": "group"}, {"norm": "batch"}, {"embed_dim": 8}])
def test_our_own_configs_are_strict(copy: Callable[[str], Path], change: dict[str, Any]) -> None:
    """An unknown field is a typing error or a newer version: both have to be told."""
    folder = copy("own")
    change_json(folder / CONFIG, **change)
    refused(folder, r"norms|norm is|does not hold the weights")


@pytest.mark.parametrize(
    ("layout", "name"),
    [("BAAI", "decoder.mid.attn_1.proj_out.bias"), ("own", "decoder.middle.attention.out.bias")],
)
def test_missing_and_unknown_tensors_are_named(copy: Callable[[str], Path], layout: str, name: str) -> None:
    """By the name that they have in the file; half a network must not load as the whole one."""
    folder = copy(layout)
    change_tensors(folder / WEIGHTS, lambda tensors: tensors.update(more=torch.zeros(1)))
    refused(folder, "[\"']more[\"']")
    change_tensors(folder / WEIGHTS, lambda tensors: tensors.pop("more"))
    change_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(name))
    refused(folder, name.replace(".", r"\."))
    StillVQ.from_pretrained(folder, parts="encoder")


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4, 3), (8, 4, 3, 3, 3), (4, 4, 1, 3, 3, 3)])
def test_a_tensor_of_another_shape(copy: Callable[[str], Path], shape: tuple[int, ...]) -> None:
    """Broadcasting could make something of it, indexing could break deep inside."""
    folder = copy("BAAI")
    name = "encoder.time_conv.1.conv.conv.weight"
    change_tensors(folder / WEIGHTS, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    refused(folder, r"does not hold the weights of its config\.json")


@pytest.mark.parametrize("layout", ["BAAI", "own"])
def test_weights_that_are_missing_or_cut_short(copy: Callable[[str], Path], layout: str) -> None:
    """An interrupted download, and the page of an error in place of a file. Pickled weights are not even looked at."""
    folder = copy(layout)
    data = (folder / WEIGHTS).read_bytes()
    for broken in (data[:-1], data[: len(data) // 2], data[:20], b"", b"<html>404</html>"):
        (folder / WEIGHTS).write_bytes(broken)
        refused(folder, r"model\.safetensors is not a whole safetensors file")
        with pytest.raises(UserError, match="not a whole safetensors file"):
            weights_digest(folder)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, r"model\.safetensors does not exist")


@pytest.mark.parametrize(
    "name",
    ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "model.bin", "a\n.safetensors", 3, None],
)
def test_an_index_that_leads_elsewhere(copy: Callable[[str], Path], name: Any) -> None:
    """It comes from the net: a path in it could read any file here."""
    folder = copy("sharded")
    shards = json.loads((folder / INDEX).read_text())["weight_map"]
    save_file({"quantize.embedding.weight": torch.zeros(64, 4)}, folder.parent / "other.safetensors")
    change_json(folder / INDEX, weight_map={**shards, "quantize.embedding.weight": name})
    refused(folder, r"index\.json says that 'quantize\.embedding\.weight' is in .*only .* beside it")


def test_an_index_that_is_wrong(copy: Callable[[str], Path]) -> None:
    """No map, a shard that is not there, a tensor in another shard than said, a tensor that is left out."""
    folder = copy("sharded")
    shards = json.loads((folder / INDEX).read_text())["weight_map"]
    first, last = sorted(set(shards.values()))[:: len(set(shards.values())) - 1]
    name = next(tensor for tensor, file in shards.items() if file == first and not tensor.endswith("tracked"))
    change_json(folder / INDEX, weight_map=[])
    refused(folder, "no weight_map")
    change_json(folder / INDEX, weight_map={})
    refused(folder, "no weight_map")
    change_json(folder / INDEX, weight_map={**shards, name: last})
    refused(folder, f"{last} lacks '{name}'")
    change_json(folder / INDEX, weight_map={tensor: file for tensor, file in shards.items() if tensor != name})
    refused(folder, f"lack '{name}'")
    change_json(folder / INDEX, weight_map=shards)
    (folder / last).unlink()
    refused(folder, f"{last} does not exist")


def test_a_converted_model_without_its_vision_part(copy: Callable[[str], Path]) -> None:
    """Weights of the language model alone beside the whole model's config."""
    folder = copy("BAAI")
    change_json(folder / CONFIG, model_type="emu3", vq_config={"base_channels": 32})
    save_file({"text_model.model.norm.weight": torch.ones(2)}, folder / WEIGHTS)
    refused(folder, "hidden_size 1024: only 128")
    change_json(folder / CONFIG, vq_config={"base_channels": 32, "hidden_size": 128})
    refused(folder, "no tensor of a vision tokenizer, only of other networks")
    with pytest.raises(UserError, match="only of other networks"):
        weights_digest(folder)
