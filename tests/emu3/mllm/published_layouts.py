"""A tiny language model written in each layout in which the released one is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY, HIDDEN, FFN, LAYERS, KV = 90, 16, 24, 2, 8
THETA = 1234.0

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
    "attention_dropout": 0.1,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "tie_word_embeddings": False,
}
REMOTE = {
    "AutoConfig": "BAAI/Emu3-Stage1--configuration_emu3.Emu3Config",
    "AutoModelForCausalLM": "BAAI/Emu3-Stage1--modeling_emu3.Emu3ForCausalLM",
}
MARKS = {name: 80 + i for i, name in enumerate(("boi", "img", "eoi", "eol", "eof"))}
RELEASED = {
    **SIZES,
    **{f"{name}_token_id": token for name, token in MARKS.items()},
    "_name_or_path": "BAAI/Emu3-Stage1",
    "architectures": ["Emu3ForCausalLM"],
    "auto_map": REMOTE,
    "image_area": 65536,
    "model_type": "Emu3",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "rope_theta": THETA,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0",
}
OLD_TRANSFORMERS = {
    **SIZES,
    "architectures": ["Emu3ForCausalLM"],
    "auto_map": REMOTE,
    "image_area": 65536,
    "mlp_bias": False,
    "attention_bias": False,
    "model_type": "emu3_text_model",
    "rope_scaling": None,
    "rope_theta": THETA,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
}
NATIVE = {
    **SIZES,
    "architectures": ["Emu3ForCausalLM"],
    "dtype": "bfloat16",
    "model_type": "emu3_text_model",
    "rope_parameters": {"rope_theta": THETA, "rope_type": "default"},
    "transformers_version": "5.19.0",
}
CONVERTED = {
    "architectures": ["Emu3ForConditionalGeneration"],
    "model_type": "emu3",
    "text_config": {**SIZES, "model_type": "emu3_text_model", "rope_scaling": None, "rope_theta": THETA},
    "vq_config": {"model_type": "emu3_vqgan"},
    "vocabulary_map": {"<image>": 80},
    "transformers_version": "4.48.0",
}

# Config, prefix of the trunk's tensors, prefix of the head's, prefix of the vision tokenizer's if there is one.
LAYOUTS: dict[str, tuple[dict[str, Any], str, str, str | None]] = {
    "released": (RELEASED, "model.", "lm_head.", None),
    "old transformers": (OLD_TRANSFORMERS, "model.", "lm_head.", None),
    "native": (NATIVE, "model.", "lm_head.", None),
    "converted": (CONVERTED, "text_model.model.", "text_model.lm_head.", "vqmodel."),
    "converted, in memory": (CONVERTED, "model.text_model.", "lm_head.", "model.vqmodel."),
}


def random_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Weights of the size above, under the names in which they were released."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        inner: dict[str, tuple[int, ...]] = {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (KV, HIDDEN),
            "self_attn.v_proj": (KV, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (FFN, HIDDEN),
            "mlp.up_proj": (FFN, HIDDEN),
            "mlp.down_proj": (HIDDEN, FFN),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inner.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def stored_name(layout: str, name: str) -> str:
    """What the layout calls the tensor that was released as `name`."""
    _, trunk, head, _ = LAYOUTS[layout]
    if name.startswith("lm_head."):
        return head + name.removeprefix("lm_head.")
    return trunk + name.removeprefix("model.")


def write_layout(folder: Path, layout: str, tensors: Mapping[str, Tensor], shards: int = 1) -> Path:
    """Write config and weights, the vision tokenizer's beside them where the layout has one."""
    config, *_, image_tokenizer = LAYOUTS[layout]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stored = {stored_name(layout, name): tensor for name, tensor in tensors.items()}
    if image_tokenizer is not None:
        stored |= {f"{image_tokenizer}{part}.weight": torch.zeros(3) for part in ("encoder.conv_in", "quantize")}
    if shards == 1:
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = [f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)]
    weight_map = {name: names[place % shards] for place, name in enumerate(stored)}
    for file in names:
        save_file({n: stored[n] for n in stored if weight_map[n] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 4 * sum(t.numel() for t in stored.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
