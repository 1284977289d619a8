"""A checkpoint loads as it was saved or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Emu3ForCausalLM

from emu3.errors import UserError
from emu3.files import LFS_POINTER
from emu3.mllm.language_model import load_language_model, new_language_model, save_checkpoint
from emu3.mllm.layout import TokenLayout
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks

UP = "model.layers.1.mlp.up_proj.weight"


def tiny(layout: TokenLayout, **changes: Any) -> Emu3ForCausalLM:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "ffn_size": 24,
        "max_positions": 64,
        "seed": 0,
    }
    return new_language_model(layout, **(sizes | changes))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("ranks") / "tiny.tiktoken"
    train_ranks(["make the circle red"] * 3, 260, path)
    return TextTokenizer.from_rank_file(path, 16)


@pytest.fixture
def checkpoint(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    save_checkpoint(tiny(tokenizer.layout), tokenizer, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def equal(one: Emu3ForCausalLM, other: Emu3ForCausalLM) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_seed_decides_the_weights_and_leaves_the_global_generator(tokenizer: TextTokenizer) -> None:
    """Were the global generator moved, the model's size would change the order of the training data."""
    before = torch.random.get_rng_state()
    first, again, other = (tiny(tokenizer.layout, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert equal(first, again)
    assert not equal(first, other)


def test_config_follows_the_layout_and_the_sizes(tokenizer: TextTokenizer) -> None:
    layout = tokenizer.layout
    model = tiny(layout, rope_theta=100.0, attention_bias=True, tie_embeddings=True)
    config = model.config
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id, config.eos_token_id) == (
        layout.vocab_size,
        layout.pad,
        layout.bos,
        layout.eos,
    )
    assert config.to_dict()["rope_parameters"]["rope_theta"] == 100.0
    assert config.attention_dropout == 0.0
    assert "model.layers.0.self_attn.q_proj.bias" in model.state_dict()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_rope_theta_reaches_the_rotation(tokenizer: TextTokenizer) -> None:
    """In the config but not in the rotary embedding it would do nothing."""
    frequencies = [tiny(tokenizer.layout, rope_theta=theta).model.rotary_emb.inv_freq for theta in (1e2, 1e6)]
    assert torch.allclose(frequencies[0], torch.tensor([1.0, 1e2**-0.5]))
    assert torch.allclose(frequencies[1], torch.tensor([1.0, 1e6**-0.5]))


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (4, 3)])
def test_sizes_that_do_not_divide(tokenizer: TextTokenizer, heads: int, kv_heads: int) -> None:
    with pytest.raises(UserError, match=f"{heads} heads, {kv_heads} key-value heads"):
        tiny(tokenizer.layout, heads=heads, kv_heads=kv_heads)


def test_published_tensor_names(tokenizer: TextTokenizer) -> None:
    """291 tensors at 32 layers is 9 per layer and 3: another name and released weights do not load."""
    names = set(tiny(tokenizer.layout).state_dict())
    layer = {"input_layernorm", "post_attention_layernorm"}
    layer |= {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    expected = {f"model.layers.{i}.{name}.weight" for i in range(2) for name in layer}
    assert names == expected | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "tie_embeddings": True, "rope_theta": 100.0}])
def test_saved_checkpoint_loads_here_and_in_transformers(
    tokenizer: TextTokenizer, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = tiny(tokenizer.layout, **options).eval()
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    loaded = load_language_model(tmp_path / "saved")
    assert not loaded.training
    assert equal(loaded, model)
    assert equal(Emu3ForCausalLM.from_pretrained(tmp_path / "saved"), model)
    assert TextTokenizer.from_pretrained(tmp_path / "saved").layout == tokenizer.layout
    ids = torch.tensor([[1, 2, 3, tokenizer.layout.first_code]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_dtype(checkpoint: Path) -> None:
    assert load_language_model(checkpoint).dtype == torch.float32
    assert load_language_model(checkpoint, torch.bfloat16).dtype == torch.bfloat16


def test_shards_load(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    model = tiny(tokenizer.layout)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert equal(load_language_model(tmp_path), model)


def test_large_checkpoints_are_saved_in_shards(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Both loaders take the index; what is one file by default stays one."""
    model = tiny(tokenizer.layout)
    save_checkpoint(model, tokenizer, tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    assert equal(load_language_model(tmp_path / "saved"), model)
    assert equal(Emu3ForCausalLM.from_pretrained(tmp_path / "saved"), model)
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").glob("*.safetensors*")] == ["model.safetensors"]


def test_attention_dropout_of_a_checkpoint_is_ignored(checkpoint: Path) -> None:
    """Published configs say 0.1, which would make a policy differ from itself in training mode."""
    edit_config(checkpoint, attention_dropout=0.1)
    model = load_language_model(checkpoint)
    assert model.config.attention_dropout == 0.0
    assert model.model.layers[0].self_attn.attention_dropout == 0.0


def test_names_of_remote_code_do_not_travel_on(tokenizer: TextTokenizer, checkpoint: Path, tmp_path: Path) -> None:
    edit_config(checkpoint, auto_map={"AutoConfig": "configuration_emu3.Emu3Config"})
    save_checkpoint(load_language_model(checkpoint), tokenizer, tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "config.json").read_text()


def test_saving_replaces_the_whole_folder(tokenizer: TextTokenizer, checkpoint: Path) -> None:
    """A shard of the previous checkpoint must not stay beside the new weights."""
    (checkpoint / "model-00001-of-00002.safetensors").write_bytes(b"old")
    save_checkpoint(tiny(tokenizer.layout, seed=5), tokenizer, checkpoint)
    assert not (checkpoint / "model-00001-of-00002.safetensors").exists()
    assert equal(load_language_model(checkpoint), tiny(tokenizer.layout, seed=5))


def test_a_tokenizer_of_another_size_is_not_saved(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer 487"):
        save_checkpoint(tiny(TokenLayout(260, 32)), tokenizer, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_of(*shards: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": dict(zip("ab", shards, strict=False))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json does not exist"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "model_type is None"),
    "other model": (lambda folder: edit_config(folder, model_type="llama"), "model_type is 'llama'"),
    "wrong type": (lambda folder: edit_config(folder, hidden_size="big"), "does not describe a model.*hidden_size"),
    "small vocabulary": (lambda folder: edit_config(folder, vocab_size=8), "does not describe a model"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights but safetensors are read"),
    "only a pickle": (only_a_pickle, "no weights but safetensors are read"),
    "cut weights": (cut, "is not a whole safetensors file"),
    "missing": (lambda f: edit_tensors(f, lambda t: t.pop(UP)), rf"1 missing \(first: {UP}\)"),
    "unexpected": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.zeros(2))), r"1 unexpected \(first: x\)"),
    "shape": (lambda f: edit_tensors(f, lambda t: t.update({UP: t[UP][:3].clone()})), rf"1 of another shape.*{UP}"),
    "more layers": (lambda folder: edit_config(folder, num_hidden_layers=3), r"9 missing \(first: model\.layers\.2"),
    "missing shard": (index_of("model-00001-of-00001.safetensors"), "00001.safetensors does not exist"),
    "shard elsewhere": (index_of("../other.safetensors"), "only .safetensors files beside it"),
    "not an index": (
        lambda f: (index_of()(f), (f / "model.safetensors.index.json").write_text("[]")),
        "is not an index",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_folder_gets_one_clear_line(checkpoint: Path, fault: str) -> None:
    """transformers fills what is missing with random weights and logs it; a run would train on noise."""
    damage, message = FAULTS[fault]
    damage(checkpoint)
    with pytest.raises(UserError, match=message) as caught:
        load_language_model(checkpoint)
    assert "\n" not in str(caught.value)
    assert str(checkpoint) in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_language_model(tmp_path / "nowhere")


POINTER = LFS_POINTER + b"v1\noid sha256:00\nsize 1\n"


def only_an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def adapter_without_config(folder: Path) -> None:
    only_an_adapter(folder)
    (folder / "config.json").unlink()


def of_a_billion_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (only_an_adapter, "the folder holds an adapter of 'org/base', which has to be merged into its base first"),
        (adapter_without_config, "config.json does not exist: the folder holds an adapter of 'org/base'"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors"),
            r"the folder holds model-00001-of-00002\.safetensors and no model\.safetensors\.index\.json",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"the folder holds pytorch_model\.bin",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(POINTER),
            "not a safetensors file: it is a git-lfs",
        ),
        (
            lambda folder: (folder / "config.json").write_bytes(POINTER),
            "config.json is not JSON: it is a git-lfs",
        ),
        (of_a_billion_layers, "num_hidden_layers is 1000000000, more than 1000"),
    ],
)
def test_what_is_there_instead_is_named(checkpoint: Path, damage: Callable[[Path], object], why: str) -> None:
    """Guards "does not exist" for an adapter, for shards without their index, for what git-lfs has not fetched; and a
    config that takes for ever."""
    damage(checkpoint)
    with pytest.raises(UserError, match=why):
        load_language_model(checkpoint)
