"""Every published layout of the language model loads as the same model, or is refused with one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cache import COMMIT, cached
from huggingface_hub import constants
from published_layouts import CONVERTED, LAYOUTS, THETA, random_tensors, stored_name, write_layout
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Emu3Config, Emu3ForCausalLM, Emu3ForConditionalGeneration

from emu3 import tensor_files
from emu3.errors import UserError
from emu3.mllm.language_model import load_language_model

UP = "model.layers.1.mlp.up_proj.weight"
IDS = torch.tensor([[2, 5, 80, 81, 7, 89, 1, 3]])
INDEX = "model.safetensors.index.json"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def expected(tmp_path: Path) -> Tensor:
    """From transformers itself, which is given the weights and what the config means."""
    config = {name: value for name, value in LAYOUTS["native"][0].items() if name != "dtype"}
    model = Emu3ForCausalLM(Emu3ForCausalLM.config_class(**config | {"attention_dropout": 0.0}))
    model.load_state_dict(random_tensors())
    return logits(model.eval())


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_all_layouts_are_equal_to_the_bit(tmp_path: Path, expected: Tensor, layout: str, shards: int) -> None:
    """Guards names, RoPE base and dropout: each of them wrong gives a working model that writes noise."""
    model = load_language_model(write_layout(tmp_path, layout, random_tensors(), shards))
    assert type(model) is Emu3ForCausalLM and not model.training and model.dtype == torch.float32
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model.train()), expected)


def test_configs_of_all_layouts_are_equal(tmp_path: Path) -> None:
    """Guards what travels on into our checkpoints: no remote code, no foreign field, one spelling of RoPE."""
    configs = [load_language_model(write_layout(tmp_path / name, name, random_tensors())).config for name in LAYOUTS]
    biases = {"attention_bias": False, "mlp_bias": False}  # transformers writes them only where they were given
    values = [biases | config.to_dict() for config in configs]
    assert values.count(values[0]) == len(values)
    assert values[0]["rope_parameters"] == {"rope_theta": THETA, "rope_type": "default"}
    assert values[0]["attention_dropout"] == 0.0
    assert not values[0].keys() & {"auto_map", "image_area", "img_token_id", "pretraining_tp", "rope_theta"}


@pytest.mark.parametrize("shard_size", ["50GB", "20KB"])
def test_what_transformers_writes_today(tmp_path: Path, shard_size: str) -> None:
    """The reference is the class that wrote the files, vision tokenizer included."""
    text = {name: value for name, value in CONVERTED["text_config"].items() if not name.startswith("rope")}
    text |= {"rope_parameters": {"rope_theta": THETA, "rope_type": "default"}}
    image = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "attn_resolutions": []}
    torch.manual_seed(0)
    whole = Emu3ForConditionalGeneration(
        Emu3Config(text_config=text, vq_config=image | {"hidden_size": 32, "codebook_size": 8}, vocabulary_map={})
    ).eval()
    whole.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / INDEX).is_file() == (shard_size == "20KB")
    assert torch.equal(logits(load_language_model(tmp_path)), logits(whole))


def test_the_image_tokenizer_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards memory: the converted release holds a gigabyte of it."""
    read = []
    opened = tensor_files.safe_open

    class Watched:
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self.file = opened(*arguments, **settings)

        def get_tensor(self, name: str) -> Tensor:
            read.append(name)
            return self.file.get_tensor(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(tensor_files, "safe_open", Watched)
    load_language_model(write_layout(tmp_path, "converted", random_tensors(), shards=2))
    assert sorted(read) == sorted(stored_name("converted", name) for name in random_tensors())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stored_dtype_and_wanted_dtype(tmp_path: Path, layout: str) -> None:
    """Guards against a config's `torch_dtype` that decides in place of the caller, and against mixed dtypes."""
    halves = {name: tensor.bfloat16() for name, tensor in random_tensors().items()}
    write_layout(tmp_path, layout, halves)
    for dtype in (torch.float32, torch.bfloat16):
        state = load_language_model(tmp_path, dtype).state_dict()
        assert {tensor.dtype for tensor in state.values()} == {dtype}
        assert all(torch.equal(state[name], half.to(dtype)) for name, half in halves.items())


def test_a_loaded_model_does_not_share_its_weights(tmp_path: Path) -> None:
    """Guards training: tensors are views of the file, and a step must reach neither the file nor another model."""
    write_layout(tmp_path, "released", random_tensors())
    before = (tmp_path / "model.safetensors").read_bytes()
    trained, reference = load_language_model(tmp_path), load_language_model(tmp_path)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    assert torch.equal(reference.state_dict()[UP], random_tensors()[UP])
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["lm_head.weight"]
    for layout in ("released", "converted"):
        folder = write_layout(tmp_path / layout, layout, tensors)
        edit_config(folder, tie_word_embeddings=True)
        model = load_language_model(folder)
        assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])


def test_a_hub_id_with_a_revision(tmp_path: Path, expected: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cache of links to blobs, offline; the links point out of the snapshot and are followed all the same."""
    cached(write_layout(tmp_path / "files", "released", random_tensors(), 2), tmp_path / "cache", "lab/earl", "v1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("lab/earl@v1", f"lab/earl@{COMMIT}"):
        assert torch.equal(logits(load_language_model(name)), expected)
    with pytest.raises(UserError, match="as a Hub id: offline"):
        load_language_model("lab/earl")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values.get("text_config", values).update(changes)
    path.write_text(json.dumps(values))


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def edit_shard(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Edit the shard with `UP` and keep the index true to it."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    shard = next(file for name, file in weight_map.items() if name.endswith(UP.removeprefix("model.")))
    tensors = load_file(folder / shard)
    edit(tensors)
    save_file(tensors, folder / shard, {"format": "pt"})
    rest = {name: file for name, file in weight_map.items() if file != shard}
    index = {"metadata": {}, "weight_map": rest | dict.fromkeys(tensors, shard)}
    (folder / INDEX).write_text(json.dumps(index))


def cut(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def swapped(weight_map: dict[str, str]) -> None:
    """The index of the same model split elsewhere: all names are there, in other files."""
    shards = sorted(set(weight_map.values()))
    weight_map.update({name: shards[shards.index(shard) - 1] for name, shard in weight_map.items()})


FAULTS: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "missing": (lambda f, up: edit_shard(f, lambda t: t.pop(up)), rf"do not fit .*1 missing \(first: {UP}\)"),
    "unexpected": (lambda f, up: edit_shard(f, lambda t: t.update(x=torch.zeros(2))), r"1 unexpected \(first: x\)"),
    "shape": (lambda f, up: edit_shard(f, lambda t: t.update({up: t[up][:3].clone()})), "1 of another shape.*{up}"),
    "integers": (lambda f, up: edit_shard(f, lambda t: t.update({up: t[up].int()})), "1 not floating point.*{up}"),
    "more layers": (lambda f, up: edit_config(f, num_hidden_layers=3), r"9 missing \(first: model\.layers\.2"),
    "cut": (lambda f, up: cut(f), "00002-of-00002.safetensors is not a whole safetensors file"),
    "no shard": (lambda f, up: (f / "model-00001-of-00002.safetensors").unlink(), "00001-of-00002.* does not exist"),
    "shard elsewhere": (
        lambda f, up: edit_index(f, lambda m: m.update({up: "../model-00001-of-00002.safetensors"})),
        "is in '../model-00001-of-00002.safetensors': only .* beside it",
    ),
    "absolute shard": (lambda f, up: edit_index(f, lambda m: m.update({up: "/etc/hosts"})), "is in '/etc/hosts': only"),
    "shard is a number": (lambda f, up: edit_index(f, lambda m: m.update({up: 1})), "is in 1: only"),  # type: ignore[dict-item]
    "index of other shards": (lambda f, up: edit_index(f, swapped), "does not fit its shards: it lists .* do not hold"),
    "index lists too much": (
        lambda f, up: edit_index(f, lambda m: m.update(x="model-00001-of-00002.safetensors")),
        r"it lists 1 tensors that they do not hold \(first: x in model-00001-of-00002",
    ),
    "index lists too little": (
        lambda f, up: edit_index(f, lambda m: m.pop(up)),
        r"it lacks 1 tensors that they hold \(first: {up}",
    ),
    "empty index": (lambda f, up: (f / INDEX).write_text('{"weight_map": {}}'), "is not an index"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layout", ["released", "native", "converted", "converted, in memory"])
def test_a_wrong_checkpoint_gets_one_clear_line(tmp_path: Path, layout: str, fault: str) -> None:
    """Each of these would otherwise train or sample on random or foreign weights, or read outside the folder."""
    damage, message = FAULTS[fault]
    folder = write_layout(tmp_path, layout, random_tensors(), shards=2)
    up = stored_name(layout, UP)
    damage(folder, up)
    with pytest.raises(UserError, match=message.replace("{up}", up)) as caught:
        load_language_model(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_tensor_under_both_names(tmp_path: Path) -> None:
    """Guards against the order in a file that decides which of two weights is taken."""
    write_layout(tmp_path, "converted", random_tensors())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["text_model.lm_head.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="1 there twice"):
        load_language_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "emu3"}, "lacks text_config"),
        ({"model_type": "Emu3VisionVQ"}, "model_type is 'Emu3VisionVQ', expected one of Emu3, emu3_text_model, emu3"),
        ({"model_type": "emu3", "text_config": {"hidden_size": "big"}}, "does not describe a model"),
    ],
)
def test_a_config_of_something_else(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_language_model(tmp_path)
