"""The layouts in which a vision tokenizer is found: the project's own, and three of the published temporal network.

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
from typing import Any

from emu3.errors import UserError
from emu3.tokenizer.config import StillVQConfig

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
    wanted = {
        "double_latent": False,
        "in_channels": 3,
        "out_channels": 3,
        "num_attention_heads": 1,
        "hidden_size": _coarsest_width(shape),
        "latent_channels": shape["embed_dim"],
    }
    for name, value in wanted.items():
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
