"""The policy and its reference as modules whose forward pass is what training needs: log-probabilities.

DeepSpeed gathers sharded weights in hooks around the forward passes of modules, so that what it wraps has to be
called as one.

The reference is the frozen start of the policy, whose distance from it the KL term counts. Where it lives: `resident`,
a copy on each rank's device; `offloaded`, a copy in each rank's main memory, pinned, that visits the device once per
step; `sharded`, one copy over all ranks, gathered layer by layer; `adapter_off`, none, it is the policy without its
LoRA. Whichever it is, a step's log-probabilities are computed once and kept for all of its inner updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import Emu3ForCausalLM

from emu3.mllm.language_model import load_language_model
from rl.config import Config
from rl.logprobs import Batch, token_logprobs
from rl.shared_prefix import ATTENTION

Score = Callable[[Batch], tuple[Tensor, Tensor]]


class TokenLogprobs(nn.Module):
    """`rl.logprobs.token_logprobs` of `model` at the run's temperature and precision, as a forward pass."""

    def __init__(self, model: Emu3ForCausalLM, config: Config) -> None:
        super().__init__()
        self.model = model
        self._config = config

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with precision(self._config, batch.target_N.device):
            return token_logprobs(self.model, batch, self._config.rollout.temperature)


def load_model(name: Path | str, config: Config) -> Emu3ForCausalLM:
    """A checkpoint on the CPU in the dtype that a run keeps its weights in: bfloat16 where DeepSpeed holds float32
    master weights beside them, else float32."""
    in_bf16 = config.compute.zero and config.compute.precision == "bf16"
    model = load_language_model(name, torch.bfloat16 if in_bf16 else torch.float32)
    model.set_attn_implementation(ATTENTION if config.compute.attention == "sdpa" else config.compute.attention)
    return model


def precision(config: Config, device: torch.device) -> torch.autocast:
    """The autocast context of a run's forward passes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.compute.precision == "bf16")


class Reference:
    """Log-probabilities of a frozen model. score: of one batch. present: entered around the batches of a step."""

    def __init__(self, score: Score, present: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._score = score
        self._present = present

    @torch.no_grad()
    def logprobs(self, batches: Sequence[Batch]) -> list[Tensor]:
        """(N,) per batch."""
        with self._present():
            return [self._score(batch)[0] for batch in batches]


def frozen_reference(config: Config, accelerator: Accelerator) -> Reference:
    """The reference that is a model of its own: `resident`, `offloaded` or `sharded`."""
    frozen = TokenLogprobs(load_model(config.model, config).requires_grad_(False), config)
    if config.compute.reference == "sharded":
        from rl.training.zero import sharded

        return Reference(sharded(frozen, config, accelerator))
    if config.compute.reference == "offloaded":
        if accelerator.device.type == "cuda":
            pin(frozen)
        return Reference(frozen, partial(visit, frozen, accelerator.device))
    return Reference(frozen.to(accelerator.device))


def pin(module: nn.Module) -> None:
    """Move the module's tensors to page-locked main memory, one after the other. torch rounds each up to a power of
    two, which makes 19.9 GB of the 17.0 of the published model in bfloat16."""
    for tensor in _tensors(module):
        tensor.data = tensor.data.pin_memory()


@contextmanager
def visit(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module on `device`. Its tensors do not change there, so that none has to be copied back.

    The copies are in the stream of the work that follows, which therefore sees them whole; nobody writes to what they
    read.
    """
    tensors = _tensors(module)
    at_home = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device, non_blocking=True)
        yield
    finally:
        for tensor, data in zip(tensors, at_home, strict=True):
            tensor.data = data


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
