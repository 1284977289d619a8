"""The three forms in which the language model is published, read as one.

| `model_type` | written by | config of the language model | its tensors |
|---|---|---|---|
| `Emu3` | the release, and fine-tuning with its code | the file itself | `model.*`, `lm_head.weight` |
| `emu3_text_model` | transformers' `Emu3ForCausalLM`, this project | the file itself | the same |
| `emu3` | transformers' `Emu3ForConditionalGeneration` | `text_config` | below `text_model.` |

The first names remote code in `auto_map`, the third holds the image tokenizer as well; both stay unread. Of a config
only the fields of `Emu3TextConfig` are taken: the others are the remote code's (image marks, image area), which are no
part of this model, or would steer how transformers loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3.errors import UserError
from emu3.files import read_json

CONVERTED = "emu3"
MODEL_TYPES = ("Emu3", "emu3_text_model", CONVERTED)

# The fields that transformers' class annotates, two that it does not, and the two that older files have for
# `rope_parameters`.
FIELDS = (*Emu3TextConfig.__annotations__, "attention_bias", "mlp_bias", "rope_theta", "rope_scaling")

# On disk, and in memory, whence a state dict may have been saved as it is.
CONVERTED_PREFIXES = (
    ("text_model.lm_head.", "lm_head."),
    ("text_model.model.", "model."),
    ("model.text_model.", "model."),
    ("lm_head.", "lm_head."),
)
IMAGE_TOKENIZER_PREFIXES = ("vqmodel.", "model.vqmodel.")


@dataclass(frozen=True)
class CheckpointConfig:
    """What a `config.json` says: its `model_type`, and the language model with the shapes of its tensors."""

    model_type: str
    language_model: Emu3TextConfig
    shapes: dict[str, list[int]]

    def name_of(self, stored: str) -> str | None:
        """What the language model calls the stored tensor; None for one of the image tokenizer's.

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


def read_config(path: Path) -> CheckpointConfig:
    """Read the config of any layout; attention dropout is set to 0.

    Raises UserError, naming the file, if it is missing, not of these layouts, or describes no model.
    """
    return config_of(read_json(path), path)


def config_of(values: Any, path: Path) -> CheckpointConfig:
    """`read_config` of a file's content. path: for the message."""
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in MODEL_TYPES:
        raise UserError(f"{path}: model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
    if model_type == CONVERTED:
        values = values.get("text_config")
        if not isinstance(values, dict):
            raise UserError(f"{path} does not describe a model: it lacks text_config")
    taken = {name: values[name] for name in FIELDS if name in values}
    try:
        config = Emu3TextConfig.from_dict(taken | {"attention_dropout": 0.0})
        with torch.device("meta"):
            state = Emu3ForCausalLM(config).state_dict()
    except Exception as error:  # a bad value surfaces as any class, from a strict dataclass's to an AssertionError
        raise UserError(f"{path} does not describe a model: {' '.join(str(error).split())}") from error
    return CheckpointConfig(model_type, config, {name: list(tensor.shape) for name, tensor in state.items()})
