"""The policy as a module whose forward pass is what training needs, log-probabilities, and the way it is loaded.

DeepSpeed gathers sharded weights in hooks around the forward passes of modules, so that what it wraps has to be
called as one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
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
