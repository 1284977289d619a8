"""The language model: transformers' own `Emu3ForCausalLM`, made new, loaded and saved.

Llama in shape: text ids and visual codes share one vocabulary (`emu3.mllm.layout`). No remote code and no pickle
is read. `from_pretrained` fills a tensor that a checkpoint lacks with random numbers and only logs it; here that,
like a tensor too many or of another shape, is an error. Attention dropout is always 0, also where a checkpoint's
config says 0.1: a policy's log-probabilities have to be those of the model that sampled.

All three published layouts load as the same class, with the same config and weights:

| `model_type` | written by | config of the language model | its tensors |
|---|---|---|---|
| `Emu3` | the release, and fine-tuning with its code | the file itself | `model.*`, `lm_head.weight` |
| `emu3_text_model` | transformers' `Emu3ForCausalLM`, this project | the file itself | the same |
| `emu3` | transformers' `Emu3ForConditionalGeneration` | `text_config` | below `text_model.` |

The first names remote code in `auto_map`, the third holds the vision tokenizer as well; both stay unread. Of a config
only the fields of `Emu3TextConfig` are taken: the others are the remote code's (image marks, image area), which are no
part of this model, or would steer how transformers loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import Emu3ForCausalLM, Emu3TextConfig
from transformers.utils import logging

from emu3.checkpoint_facts import CheckpointFacts, write_facts
from emu3.errors import UserError
from emu3.files import read_json, sha256_of, whole_folder
from emu3.hub import SMALL_FILES, local_folder
from emu3.mllm.layout import TokenLayout
from emu3.mllm.small_memory import (
    ANY_LENGTH,
    Quantization,
    check_room,
    free_bytes,
    quantizer_of,
    spread_layers,
    stored_quantization,
    stored_shapes,
    suited_dtype,
)
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.tensor_files import FLOATS, TensorFiles, TensorHeaders, found_instead

CONVERTED = "emu3"
MODEL_TYPES = ("Emu3", "emu3_text_model", CONVERTED)

# The fields that transformers' class annotates, two that it does not, and the two that older files have for
# `rope_parameters`.
FIELDS = (*Emu3TextConfig.__annotations__, "attention_bias", "mlp_bias", "rope_theta", "rope_scaling")

# On disk, and in memory, whence a state dict may have been saved as it is.
MOST_LAYERS = 1000
CONVERTED_PREFIXES = (
    ("text_model.lm_head.", "lm_head."),
    ("text_model.model.", "model."),
    ("model.text_model.", "model."),
    ("lm_head.", "lm_head."),
)
IMAGE_TOKENIZER_PREFIXES = ("vqmodel.", "model.vqmodel.")

# A bar for each folder read or written would stand between the lines that a command has to say.
logging.disable_progress_bar()


@dataclass(frozen=True)
class CheckpointConfig:
    """What a `config.json` says: its `model_type`, and the language model with the shapes of its tensors.

    stored: names, shapes and dtypes of the tensors as they are in the files, other than `shapes` if they are quantized
    by `quantizer`, its `quantization_config`.
    """

    model_type: str
    language_model: Emu3TextConfig
    shapes: dict[str, list[int]]
    quantizer: dict[str, Any] | None = None

    @property
    def stored(self) -> dict[str, tuple[list[int], str]]:
        """Shapes and dtypes as `small_memory.stored_shapes` has them."""
        if self.quantizer is None:
            return {name: (shape, "") for name, shape in self.shapes.items()}
        return stored_shapes(self.shapes, self.quantizer)

    def name_of(self, stored: str) -> str | None:
        """What the language model calls the stored tensor; None for one of the vision tokenizer's.

        A name that fits nowhere is returned as it is, to be found unexpected.
        """
        if self.model_type != CONVERTED:
            return stored
        if stored.startswith(IMAGE_TOKENIZER_PREFIXES):
            return None
        for prefix, ours in CONVERTED_PREFIXES:
            if stored.startswith(prefix):
                return ours + stored.removeprefix(prefix)
        return stored


def config_digest(name: Path | str) -> str:
    """SHA-256 of a checkpoint's `config.json`, which decides what its tensors compute, as 64 hex digits."""
    return sha256_of(local_folder(name, SMALL_FILES) / "config.json")


def read_config(path: Path) -> CheckpointConfig:
    """Read the config of any layout; attention dropout is set to 0.

    Raises UserError, naming the file, if it is missing, not of these layouts, or describes no model.
    """
    if not path.exists() and (found := found_instead(path.parent)):
        raise UserError(f"{path} does not exist{found}")
    return config_of(read_json(path), path)


def config_of(values: Any, path: Path) -> CheckpointConfig:
    """`read_config` of a file's content. path: for the message."""
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in MODEL_TYPES:
        raise UserError(f"{path}: model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
    quantizer = values.get("quantization_config")
    stored_quantization(quantizer, path)
    if model_type == CONVERTED:
        values = values.get("text_config")
        if not isinstance(values, dict):
            raise UserError(f"{path} does not describe a model: it lacks text_config")
    taken = {name: values[name] for name in FIELDS if name in values}
    try:
        if taken.get("num_hidden_layers", 1) > MOST_LAYERS:  # each is made, on no device, which takes milliseconds
            raise ValueError(f"num_hidden_layers is {taken['num_hidden_layers']}, more than {MOST_LAYERS}")
        config = Emu3TextConfig.from_dict(taken | {"attention_dropout": 0.0})
        with torch.device("meta"):
            state = Emu3ForCausalLM(config).state_dict()
    except Exception as error:  # a bad value surfaces as any class, from a strict dataclass's to an AssertionError
        raise UserError(f"{path} does not describe a model: {' '.join(str(error).split())}") from error
    return CheckpointConfig(model_type, config, {name: list(tensor.shape) for name, tensor in state.items()}, quantizer)


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


def load_language_model(name: Path | str, dtype: torch.dtype = torch.float32) -> Emu3ForCausalLM:
    """Load a checkpoint of any of the published layouts onto the CPU, in `dtype` and in eval mode.

    name: a folder, or a Hub id (`emu3.hub`). Tensors that are stored in another dtype are converted one by one; the
    others stay views of the mapped files until they are written to, so memory never holds the weights twice.

    Raises UserError, naming the folder, for a missing folder or file, another kind of model, unreadable weights,
    quantized ones, and weights that lack a tensor, hold one too many or twice, or one of another shape or kind of
    number.
    """
    found = StoredModel.of(name)
    if found.config.quantizer is not None:
        raise UserError(f"{name} is stored quantized: it edits, and cannot be trained or exported; name the whole one")
    return found.load(dtype)


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint whose tensors have been found to be the right ones. state: the tensors, each read when it is asked
    for; names: what they are called there."""

    name: Path | str
    config: CheckpointConfig
    tensors: TensorFiles
    names: dict[str, str]

    @classmethod
    def of(cls, name: Path | str) -> Self:
        """Raises UserError as `load_language_model`."""
        folder = local_folder(name)
        config = read_config(folder / "config.json")
        tensors = TensorFiles.of(folder)
        return cls(name, config, tensors, fitting_names(folder, tensors, config))

    def dtypes(self) -> set[str]:
        """Of its tensors, as safetensors spells them."""
        return {self.tensors.shape_and_dtype(stored)[1] for stored in self.names.values()}

    def load(self, dtype: torch.dtype, **settings: Any) -> Emu3ForCausalLM:
        """In eval mode, on the CPU but for what `settings`, those of `from_pretrained`, say."""
        config = self.config.language_model
        if self.config.quantizer is not None:
            config = Emu3TextConfig.from_dict({**config.to_dict(), "quantization_config": self.config.quantizer})
        state = {name: self.tensors[stored] for name, stored in self.names.items()}
        model = Emu3ForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **settings)
        # Made under ZeRO-3, where DeepSpeed gives new tensors the dtype of the weights, it has frequencies in bfloat16,
        # and with them tokens at wrong angles: up to 1.3 rad over the length of an image.
        rotary = model.model.rotary_emb
        model.model.rotary_emb = type(rotary)(config=model.config).to(rotary.inv_freq.device)
        return model


def load_for_editing(
    name: Path | str,
    device: torch.device,
    dtype: torch.dtype | None,
    quantization: Quantization | None,
    device_map: Literal["auto"] | None,
) -> Emu3ForCausalLM:
    """Load a checkpoint onto `device`, with `quantization` or as it is stored, or spread as `device_map` says.

    dtype: None is `suited_dtype`. device_map: "auto" keeps the layers that do not fit on the device in main memory.
    Raises UserError as `StoredModel.of`, for settings that exclude each other, and for weights that do not fit.
    """
    found = StoredModel.of(name)
    shapes, stored = found.config.shapes, stored_quantization(found.config.quantizer, Path(name))
    dtype = dtype or suited_dtype(device, found.dtypes())
    if stored is not None and quantization not in (None, stored):
        raise UserError(f"{name} is stored in {stored}: it cannot be loaded in {quantization}")
    chosen = stored or quantization
    if device_map is not None and chosen is not None:
        raise UserError("quantized weights are on one device: --quantization or --device-map, not both")
    if device_map is not None and device.type != "cpu" and (free := free_bytes(device)) is not None:
        return found.load(dtype, device_map=spread_layers(shapes, dtype, device, free))
    check_room(name, shapes, dtype, chosen, device)
    if chosen is not None:
        # In a checkpoint that is stored quantized the quantizer's settings are its own.
        settings = quantizer_of(chosen, dtype)
        own = {} if stored else {"quantization_config": settings}
        return found.load(dtype, device_map={"": str(device)}, **own)
    return found.load(dtype).to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature


def save_checkpoint(
    model: Emu3ForCausalLM,
    tokenizer: TextTokenizer,
    folder: Path | str,
    max_shard_size: str = "5GB",
    state: dict[str, Tensor] | None = None,
    facts: CheckpointFacts | None = None,
) -> None:
    """Write weights, config, tokenizer and, if there are any, facts as the whole of `folder`, replacing what was there.

    max_shard_size: such as "5GB"; larger weights are split into files of at most this size, with an index. state: the
    weights by name where they are not those of `model`, which may be sharded.
    `Emu3ForCausalLM.from_pretrained` loads it. Raises ValueError if model and tokenizer differ in vocabulary.
    """
    if model.config.vocab_size != tokenizer.layout.vocab_size:
        raise ValueError(
            f"the model has {model.config.vocab_size} token ids, the tokenizer {tokenizer.layout.vocab_size}"
        )
    with whole_folder(Path(folder)) as temporary:
        model.save_pretrained(temporary, max_shard_size=max_shard_size, state_dict=state)
        tokenizer.save_pretrained(temporary)
        if facts is not None:
            write_facts(temporary, facts)


def fits(expected: list[int], shape: list[int]) -> bool:
    """Whether a shape is the expected one, `ANY_LENGTH` being any."""
    return len(expected) == len(shape) and all(e in (ANY_LENGTH, s) for e, s in zip(expected, shape, strict=True))


def fitting_names(where: Path | str, tensors: TensorHeaders, config: CheckpointConfig) -> dict[str, str]:
    """Under which name each tensor of the language model is stored; only headers are looked at.

    Not by `from_pretrained(key_mapping=..., output_loading_info=True)`: that reports what is missing, unexpected or of
    another shape when the weights are read, this before they are read, even before they are fetched
    (`emu3.hub_headers`); and it passes over tensors that are there twice or are no floating-point numbers.

    where: for the message. Raises UserError if the tensors are not those of `config`, or their index not theirs.
    """
    tensors.check_index()
    found: dict[str, str] = {}
    twice = set()
    for stored in tensors:
        name = config.name_of(stored)
        if name in found:
            twice.add(stored)
        elif name is not None:
            found[name] = stored
    headers = {name: tensors.shape_and_dtype(stored) for name, stored in found.items()}
    expected = config.stored
    both = expected.keys() & found.keys()
    optional = {"lm_head.weight"} if config.language_model.tie_word_embeddings else set()
    optional |= {name for name in expected if name.endswith(".weight_format")}
    faults = {
        "missing": expected.keys() - found.keys() - optional,
        "unexpected": {found[name] for name in found.keys() - expected.keys()},
        "there twice": twice,
        "of another shape": {found[name] for name in both if not fits(expected[name][0], headers[name][0])},
        "not floating point": {found[n] for n in both if not expected[n][1] and headers[n][1] not in FLOATS},
        "of another kind of number": {found[n] for n in both if expected[n][1] not in ("", headers[n][1])},
    }
    found_faults = [f"{len(names)} {fault} (first: {min(names)})" for fault, names in faults.items() if names]
    if found_faults:
        raise UserError(f"the tensors in {where} do not fit its config.json: {', '.join(found_faults)}")
    return found
