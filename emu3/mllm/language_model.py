"""The language model: transformers' own `Emu3ForCausalLM`, made new, loaded and saved.

Llama in shape: text ids and visual codes share one vocabulary (`emu3.mllm.layout`). No remote code and no pickle
is read. `from_pretrained` fills a tensor that a checkpoint lacks with random numbers and only logs it; here that,
like a tensor too many or of another shape, is an error. Attention dropout is always 0, also where a checkpoint's
config says 0.1: a policy's log-probabilities have to be those of the model that sampled.

Only the layout that transformers writes (`model_type` "emu3_text_model") is read here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import Emu3ForCausalLM, Emu3TextConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from emu3.errors import UserError
from emu3.files import read_json, whole_folder
from emu3.mllm.layout import TokenLayout
from emu3.mllm.text_tokenizer import TextTokenizer

MODEL_TYPE = "emu3_text_model"

# A bar for each folder read or written would stand between the lines that a command has to say.
logging.disable_progress_bar()


def new_language_model(
    layout: TokenLayout,
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ffn_size: int,
    max_positions: int,
    rope_theta: float = 1e6,
    attention_bias: bool = False,
    tie_embeddings: bool = False,
    initializer_range: float = 0.02,
    seed: int,
) -> Emu3ForCausalLM:
    """A model with random float32 weights that depend on `seed`, the sizes and `initializer_range`, their standard
    deviation, only.

    Raises UserError if `heads` does not divide `hidden_size` or `kv_heads` does not divide `heads`.
    """
    if hidden_size % heads or heads % kv_heads:
        raise UserError(
            f"hidden size {hidden_size}, {heads} heads, {kv_heads} key-value heads: each must be a multiple of the next"
        )
    config = Emu3TextConfig(
        vocab_size=layout.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=ffn_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        attention_bias=attention_bias,  # type: ignore[call-arg]  # a field without annotation in transformers
        attention_dropout=0.0,
        tie_word_embeddings=tie_embeddings,
        initializer_range=initializer_range,
        pad_token_id=layout.pad,
        bos_token_id=layout.bos,
        eos_token_id=layout.eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Emu3ForCausalLM(config)


def load_language_model(folder: Path | str, dtype: torch.dtype = torch.float32) -> Emu3ForCausalLM:
    """Load a checkpoint folder (`config.json` of type `emu3_text_model`, safetensors) onto the CPU, in eval mode.

    Raises UserError, naming the folder, for a missing folder or file, another kind of model, unreadable weights,
    and weights that lack a tensor, hold one too many, or one of another shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"checkpoint folder {folder} does not exist")
    config, wanted = _read_config(folder / "config.json")
    found = _stored_shapes(folder)
    if config.tie_word_embeddings:
        found.setdefault("lm_head.weight", wanted["lm_head.weight"])
    faults = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": found.keys() - wanted.keys(),
        "of another shape": {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
    }
    told = [f"{len(names)} {fault} (first: {min(names)})" for fault, names in faults.items() if names]
    if told:
        raise UserError(f"the tensors in {folder} do not fit its config.json: {', '.join(told)}")
    return Emu3ForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True
    )


def save_checkpoint(model: Emu3ForCausalLM, tokenizer: TextTokenizer, folder: Path | str) -> None:
    """Write weights, config and tokenizer as the whole of `folder`, replacing what was there.

    `Emu3ForCausalLM.from_pretrained` loads it. Raises ValueError if model and tokenizer differ in vocabulary.
    """
    if model.config.vocab_size != tokenizer.layout.vocab_size:
        raise ValueError(
            f"the model has {model.config.vocab_size} token ids, the tokenizer {tokenizer.layout.vocab_size}"
        )
    with whole_folder(Path(folder)) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _read_config(path: Path) -> tuple[Emu3TextConfig, dict[str, list[int]]]:
    """The config and the shapes of the tensors that it asks for."""
    values = read_json(path)
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type != MODEL_TYPE:
        raise UserError(f"{path}: model_type is {model_type!r}, expected {MODEL_TYPE!r}")
    for key in ("auto_map", "transformers_weights"):  # remote code, and weights other than those checked here
        values.pop(key, None)
    try:
        config = Emu3TextConfig.from_dict(values | {"attention_dropout": 0.0})
        with torch.device("meta"):
            state = Emu3ForCausalLM(config).state_dict()
    except Exception as error:  # a bad value surfaces as any class, from a strict dataclass's to an AssertionError
        raise UserError(f"{path} does not describe a model: {' '.join(str(error).split())}") from error
    return config, {name: list(tensor.shape) for name, tensor in state.items()}


def _stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the stored tensors, read from the headers of the weight files alone."""
    shapes: dict[str, list[int]] = {}
    for name in _weight_files(folder):
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} does not exist: the checkpoint is not whole")
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    return shapes


def _weight_files(folder: Path) -> list[str]:
    """Names of the weight files, chosen as `from_pretrained` does: one file goes before an index of shards."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        raise UserError(f"{folder} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}: no weights to load")
    values = read_json(index)
    shards = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(shards, dict) or "metadata" not in values:
        raise UserError(f"{index} is not an index of safetensors shards: it lacks weight_map or metadata")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names a shard outside its folder: {name}")
    return names
