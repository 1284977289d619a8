"""From a folder or Hub id to the weights of a still tokenizer, in whichever of the known layouts it is there.

| model_type in config.json | where | tensors |
|---|---|---|
| still_vq | `StillVQ.save_pretrained` | folded already |
| Emu3VisionVQ | BAAI/Emu3-VisionTokenizer | as in BAAI's modelling code |
| emu3_vqgan | a `transformers.Emu3VQVAE` saved alone | as in transformers |
| emu3 | `transformers.Emu3ForConditionalGeneration` | the same under `vqmodel.` or `model.vqmodel.` |

BAAI's network is transformers' under other names, with the attention's matrices as 1x1 convolutions. No remote code is
run: what is needed of it are the two tables below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu3.errors import UserError, one_line
from emu3.files import read_json
from emu3.hub import local_folder
from emu3.tensor_files import TensorFiles, TensorHeaders
from emu3.tokenizer.blocks import Parts, StillVQConfig
from emu3.tokenizer.fold import CODEBOOK, fold

CONFIG_FILE = "config.json"
OWN_MODEL_TYPE = "still_vq"
BAAI_MODEL_TYPE = "Emu3VisionVQ"

PUBLISHED: dict[str, Any] = {
    "codebook_size": 32768,
    "embed_dim": 4,
    "latent_channels": 4,
    "double_latent": False,
    "in_channels": 3,
    "out_channels": 3,
    "temporal_downsample_factor": 4,
    "base_channels": 256,
    "channel_multiplier": (1, 2, 2, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (3,),
    "hidden_size": 1024,
    "num_attention_heads": 1,
}
"""transformers' fields with the published values, which a config.json may leave out."""

BAAI_FIELDS = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
}
"""BAAI's name of a field to transformers', where they differ."""

NOT_IN_BAAI = ("hidden_size", "num_attention_heads")
"""What BAAI's code does not ask for: the width of the coarsest level, and 1."""

BAAI_TENSORS = (
    (re.compile(r"\.(down|up)_block\.\1\."), r".\1."),
    (re.compile(r"\.middle_block\."), ".mid."),
    (re.compile(r"\.attn_norm\."), ".attn_1.norm."),
    (re.compile(r"\.attn_norms\.(\d+)\."), r".attn.\1.norm."),
    (re.compile(r"\.([qkv])_proj\."), r".\1."),
    (re.compile(r"\.out_proj\."), ".proj_out."),
)
"""From a part of transformers' tensor name to BAAI's."""


@dataclass(frozen=True)
class Layout:
    """How a checkpoint holds a tokenizer.

    folded: its tensors are those of `StillVQ`. prefixes: what its tensors' names may begin with, in a file that holds
    more. spelling: from a name of `transformers.Emu3VQVAE` to the checkpoint's.
    """

    config: StillVQConfig
    folded: bool
    prefixes: tuple[str, ...] = ("",)
    spelling: Callable[[str], str] = str


def layout_of(values: Any) -> Layout:
    """The layout that a config.json with these values announces.

    Raises UserError if it is none of the four or describes a network that stills do not have, and TypeError,
    ValueError or LookupError if its values are no sizes.
    """
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type == OWN_MODEL_TYPE:
        fields = {name: value for name, value in values.items() if name != "model_type"}
        return Layout(StillVQConfig.from_dict(fields), folded=True)
    if model_type == BAAI_MODEL_TYPE:
        fields = {BAAI_FIELDS.get(name, name): value for name, value in values.items() if name not in NOT_IN_BAAI}
        fields["hidden_size"] = _coarsest_width({**PUBLISHED, **fields})
        return Layout(still_config(fields), folded=False, spelling=baai_name)
    if model_type == "emu3_vqgan":
        return Layout(still_config(values), folded=False)
    if model_type == "emu3" and isinstance(values.get("vq_config"), dict):
        return Layout(still_config(values["vq_config"]), folded=False, prefixes=("vqmodel.", "model.vqmodel."))
    raise UserError(
        f"model_type {model_type!r} is not the config of a vision tokenizer (still_vq, Emu3VisionVQ, emu3_vqgan, or "
        "emu3 with a vq_config); for the language model of the Emu3 release that is BAAI/Emu3-VisionTokenizer"
    )


def still_config(values: Mapping[str, Any]) -> StillVQConfig:
    """The still shape of a temporal network with the fields of `transformers.Emu3VQVAEConfig`.

    Other fields are ignored. Raises UserError for what stills do not have.
    """
    shape = {name: values.get(name, default) for name, default in PUBLISHED.items()}
    required = {
        "double_latent": False,
        "in_channels": 3,
        "out_channels": 3,
        "num_attention_heads": 1,
        "hidden_size": _coarsest_width(shape),
        "latent_channels": shape["embed_dim"],
    }
    for name, value in required.items():
        if shape.pop(name) != value:
            raise UserError(f"{name} {values.get(name, PUBLISHED[name])!r}: only {value!r} can be folded")
    return StillVQConfig(**shape)


def baai_name(name: str) -> str:
    """BAAI's name of a tensor that transformers calls `name`."""
    for pattern, replacement in BAAI_TENSORS:
        name = pattern.sub(replacement, name)
    return name


def _coarsest_width(shape: Mapping[str, Any]) -> int:
    return int(shape["base_channels"] * shape["channel_multiplier"][-1])


def read_checkpoint(
    name: Path | str, dtype: torch.dtype | None, parts: Parts
) -> tuple[StillVQConfig, dict[str, Tensor]]:
    """Config and state dict of `StillVQ(config, parts)`; tensors of the other half are not read.

    Published layouts are folded into `dtype` (None: that of their codebook); the project's own comes as saved.

    Raises UserError, in one line, for a folder that holds none of the layouts, a config or an index that does not
    fit, a missing or unknown tensor, and a file that is missing or cut short.
    """
    layout = _layout(name)
    return layout.config, still_state(name, layout, TensorFiles.of(name, layout.prefixes), dtype, parts)


def still_state(
    name: Path | str, layout: Layout, tensors: TensorHeaders, dtype: torch.dtype | None, parts: Parts
) -> dict[str, Tensor]:
    """The state dict of `read_checkpoint` from its tensors, without numbers if they have none. name: for messages."""
    _check_any(name, tensors)
    if layout.folded:
        absent = tuple(f"{half}." for half in ("encoder", "decoder") if parts not in ("both", half))
        return {tensor: tensors[tensor] for tensor in tensors if not tensor.startswith(absent)}
    if dtype is None and CODEBOOK in tensors:
        dtype = tensors[CODEBOOK].dtype
    try:
        return fold(tensors, layout.config, dtype or torch.float32, parts, layout.spelling)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (RuntimeError, IndexError) as error:  # a tensor of another rank or size than its layer's
        raise UserError(f"{name} does not hold the weights of its {CONFIG_FILE}: {one_line(error)}") from None


def weights_digest(name: Path | str) -> str:
    """By what tokenized data and checkpoints name the tokenizer in the folder or Hub id `name`: `TensorFiles.digest`.

    Files without a tensor of the tokenizer do not count. The same weights in another layout have another digest.

    Raises UserError as `read_checkpoint`.
    """
    tensors = TensorFiles.of(name, _layout(name).prefixes)
    _check_any(name, tensors)
    return tensors.digest()


def layout_in(values: Any, path: Path) -> Layout:
    """The layout that the content of the config `path` announces. Raises UserError, naming it, if there is none."""
    try:
        return layout_of(values)
    except (UserError, TypeError, ValueError, LookupError) as error:  # the file may hold anything
        raise UserError(f"{path}: {one_line(error)}") from None


def _layout(name: Path | str) -> Layout:
    path = local_folder(name, (CONFIG_FILE,)) / CONFIG_FILE
    return layout_in(read_json(path), path)


def _check_any(name: Path | str, tensors: TensorHeaders) -> None:
    if not tensors:
        raise UserError(f"{name} holds no tensor of a vision tokenizer, only of other networks")
