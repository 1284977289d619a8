"""The language model in less memory: 8 or 4 bits per weight, layers that wait in main memory, and what of it fits.

The quantizers are transformers', with bitsandbytes behind them, on CUDA and on a CPU:

| setting | weights of the layers | a product is | from |
|---|---|---|---|
| 8bit | int8, a scale for each row | of int8 numbers, and in float16 of inputs beyond 6 | arXiv:2208.07339 |
| 4bit | NF4, a scale for each block of 64 | in the model's dtype, of widened weights | arXiv:2305.14314 |

Embeddings, head and norms keep the model's dtype: of the published model 3 of 17 GB. Which inputs lie beyond 6 is
asked of a whole batch, so under 8bit a sample may change with what is sampled beside it.

A checkpoint that is stored quantized says so in its config.json (`quantization_config`). Those of bitsandbytes are
read, each tensor accounted for like all others (`stored_shapes`).

Bytes are counted from shapes before a weight is read. They are the weights' alone: a cache of keys and values comes on
top, for the published model 0.13 MB for each token of a prompt and of each edit.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from emu3.errors import UserError

Quantization = Literal["8bit", "4bit"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
BLOCK = 64
"""Weights that share a scale under 4bit, and what the widths have to be multiples of."""
KEPT_FREE = 0.1
"""Share of a device's free memory that `spread_layers` leaves to the cache: a rule of thumb."""

_LAYER_MATRIX = re.compile(r"model\.layers\.\d+\..*_proj\.weight")
ANY_LENGTH = -1
BYTES = {"I8": 1, "U8": 1, "F32": 4}
"""Of a number in what a quantizer adds."""


def quantizer_of(quantization: Quantization, dtype: torch.dtype) -> Any:
    """transformers' config of the quantizer. dtype: what 4-bit weights are widened to. Raises UserError without it."""
    if find_spec("bitsandbytes") is None:
        raise UserError(f"quantization {quantization} needs bitsandbytes: pip install bitsandbytes")
    _import_bitsandbytes()
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _import_bitsandbytes() -> None:
    """Import it without the package `kernels`, by which it would fetch code from the Hub and run it, and without its
    lines about that and about each cast to float16."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    hidden = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # to `import` that means: there is none
    try:
        import bitsandbytes  # noqa: F401
    finally:
        del sys.modules["kernels"]
        if hidden is not None:
            sys.modules["kernels"] = hidden


def stored_quantization(values: Any, where: Path) -> Quantization | None:
    """What the `quantization_config` of a config.json says, None if it is None.

    Raises UserError for another method than bitsandbytes' with its defaults, and for a head that is quantized as well.
    """
    if values is None:
        return None
    if not isinstance(values, dict) or values.get("quant_method") != "bitsandbytes":
        method = values.get("quant_method") if isinstance(values, dict) else values
        raise UserError(
            f"{where}: weights quantized by {method!r} are not read, only by bitsandbytes, or not quantized"
        )
    eight, four = bool(values.get("load_in_8bit")), bool(values.get("load_in_4bit"))
    storage, skipped = values.get("bnb_4bit_quant_storage") or "uint8", values.get("llm_int8_skip_modules")
    if eight == four or storage != "uint8" or skipped not in (None, ["lm_head"]):
        raise UserError(
            f"{where}: expected a quantization_config of 8 or 4 bits, stored as uint8, of all layers but lm_head"
        )
    return "8bit" if eight else "4bit"


def stored_shapes(shapes: Mapping[str, list[int]], values: Mapping[str, Any]) -> dict[str, tuple[list[int], str]]:
    """Names, shapes and dtypes (as safetensors spells them; "" is any floating-point one) of the tensors that a
    checkpoint with this `quantization_config` holds, from the shapes of the model's. `ANY_LENGTH` is any."""
    expected: dict[str, tuple[list[int], str]] = {}
    for name, shape in shapes.items():
        if _LAYER_MATRIX.fullmatch(name) is None:
            expected[name] = (shape, "")
            continue
        if values.get("load_in_8bit"):
            expected[name] = (shape, "I8")
            expected[f"{name.removesuffix('weight')}SCB"] = ([shape[0]], "F32")
            expected[f"{name.removesuffix('weight')}weight_format"] = ([], "U8")
            continue
        blocks = -(-prod(shape) // BLOCK)
        nested = bool(values.get("bnb_4bit_use_double_quant"))
        expected[name] = ([-(-prod(shape) // 2), 1], "U8")
        expected[f"{name}.absmax"] = ([blocks], "U8" if nested else "F32")
        expected[f"{name}.quant_map"] = ([16], "F32")
        expected[f"{name}.quant_state.bitsandbytes__{values.get('bnb_4bit_quant_type', 'fp4')}"] = ([ANY_LENGTH], "U8")
        if nested:
            expected[f"{name}.nested_absmax"] = ([-(-blocks // 256)], "F32")
            expected[f"{name}.nested_quant_map"] = ([256], "F32")
    return expected


def weight_bytes(shapes: Mapping[str, list[int]], dtype: torch.dtype, quantization: Quantization | None) -> int:
    """Bytes of a model with parameters of these shapes under a setting. Raises UserError if its widths do not suit."""
    if quantization is None:
        return sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
    for name, shape in shapes.items():
        if quantization == "4bit" and _LAYER_MATRIX.fullmatch(name) and shape[1] % BLOCK:
            raise UserError(f"quantization 4bit needs widths that are multiples of {BLOCK}, {name} has {shape[1]}")
    stored = stored_shapes(shapes, {f"load_in_{quantization}": True}).values()
    return sum(prod(shape) * BYTES.get(kind, dtype.itemsize) for shape, kind in stored if ANY_LENGTH not in shape)


def check_room(
    name: Path | str,
    shapes: Mapping[str, list[int]],
    dtype: torch.dtype,
    quantization: Quantization | None,
    device: torch.device,
) -> None:
    """Raise UserError, with the settings that fit, if the weights of `name` are more than is free on `device`."""
    free, needed = free_bytes(device), weight_bytes(shapes, dtype, quantization)
    if free is None or needed <= free:
        return
    ways = []
    for other in QUANTIZATIONS[QUANTIZATIONS.index(quantization) + 1 if quantization else 0 :]:
        try:
            if (less := weight_bytes(shapes, dtype, other)) <= free:
                ways.append(f"--quantization {other} takes {less / 1e9:.1f}")
        except UserError:
            continue
    if device.type != "cpu" and quantization is None:
        ways.append("--device-map auto keeps layers in main memory")
    raise UserError(
        f"the weights of {name} in {quantization or str(dtype).removeprefix('torch.')} need {needed / 1e9:.1f} GB, "
        f"{free / 1e9:.1f} are free on {device}: {', '.join(ways) or 'no setting fits, a smaller model might'}"
    )


def spread_layers(
    shapes: Mapping[str, list[int]], dtype: torch.dtype, device: torch.device, free: int
) -> dict[str, str]:
    """A `device_map`: as many layers as fit on the device, the others in main memory until each is its turn.

    free: bytes of the device. Embeddings, norm and head lie on the device, whose product sampling takes by itself.
    """
    layers = sorted({int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")})
    of_layer = {name: shape for name, shape in shapes.items() if name.startswith("model.layers.0.")}
    rest = {name: shape for name, shape in shapes.items() if not name.startswith("model.layers.")}
    room = free * (1 - KEPT_FREE) - weight_bytes(rest, dtype, None)
    fit = max(0, int(room // weight_bytes(of_layer, dtype, None)))
    parts = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), str(device))
    return parts | {f"model.layers.{layer}": str(device) if layer < fit else "cpu" for layer in layers}


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a CUDA device, available main memory for a CPU; None if it cannot be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        return main_memory()[1]
    except OSError:  # no /proc: not Linux
        return None


def main_memory(system: Path = Path("/")) -> tuple[int, int]:
    """Total and available bytes; a control group's limit goes before the machine's."""
    text = (system / "proc/meminfo").read_text()
    values = {name: int(number) * 1024 for name, number in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    total, available = values["MemTotal"], values["MemAvailable"]
    for limit, used in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = int((system / limit).read_text()), int((system / used).read_text())
        except (OSError, ValueError):  # another version of control groups, or "max"
            continue
        if most < total:
            total, available = most, min(available, max(0, most - now))
    return total, available


def suited_dtype(device: torch.device, stored: set[str]) -> torch.dtype:
    """bfloat16 on a GPU, and on a CPU that computes in it if the weights are stored in it; float32 elsewhere.

    stored: dtypes of the weights as safetensors spells them.
    """
    if device.type == "cuda":
        return torch.bfloat16
    able = torch.cpu.get_capabilities()
    fast = device.type == "cpu" and any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast and "BF16" in stored else torch.float32
