"""LoRA (Hu et al., 2022) by peft: small trainable matrices beside the frozen projections of every layer.

    y = W x + (alpha / rank) B A x,   A random, B zero at the start

The adapters live inside the model's own modules, so that whatever calls it, sampler or trainer, sees them. What
leaves the run is merged: a checkpoint with W + (alpha / rank) B A, or the same tensors for a sampler elsewhere.
Merging is done on copies; W, merged and unmerged in place, would drift by a rounding in each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Emu3ForCausalLM

from emu3.errors import UserError

ADAPTER = "adapter.safetensors"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_lora(model: Emu3ForCausalLM, rank: int, alpha: float, seed: int) -> Any:
    """Freeze `model` and put adapters into its projections, in place; returns peft's model around it.

    rank: of each adapter. alpha: its output is scaled by alpha / rank. seed: of the matrices A.
    Raises UserError where peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("LoRA is asked for, but peft is not installed: pip install peft") from None
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, settings)  # type: ignore[arg-type]


Present = Callable[[Sequence[Tensor]], AbstractContextManager[Any]]


def _always(_: Sequence[Tensor]) -> AbstractContextManager[Any]:
    return nullcontext()


def merged(model: nn.Module, present: Present = _always) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of `model` under the name that it has without adapters, adapters merged into copies.

    present: entered around the use of the tensors it is given, for weights that are sharded.
    """
    projections = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, tensor in model.named_parameters():
        if ".lora_" in name:
            continue
        owner, inside, kind = name.rpartition(".base_layer.")
        adapted = projections[owner] if inside and kind == "weight" else None
        with present([tensor] if adapted is None else list(adapted.parameters())):
            value = tensor.detach()
            if adapted is not None:
                value = value + adapted.get_delta_weight("default").detach().to(value.dtype)  # type: ignore[operator]
            yield name.replace(".base_layer.", "."), value


def adapters(model: nn.Module, present: Present = _always) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the adapters alone, under the names that they have in `model`."""
    for name, tensor in model.named_parameters():
        if ".lora_" in name:
            with present([tensor]):
                yield name, tensor.detach()
