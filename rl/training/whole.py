"""The policy with everything on each rank: weights, gradients and AdamW's two moments, in float32.

Gradients are summed over ranks; equal sums make equal steps, so that all ranks keep equal weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import Emu3ForCausalLM

from emu3.training.lora import adapters, merged
from emu3.training.optimizer_state import load_optimizer, save_optimizer
from rl.config import Config
from rl.logprobs import Batch
from rl.training.optimizer import adamw
from rl.training.policy import TokenLogprobs


class WholeTrainer:
    """A `Trainer` without sharding."""

    lockstep = False

    def __init__(self, model: Emu3ForCausalLM, config: Config, accelerator: Accelerator) -> None:
        self.model: Emu3ForCausalLM = model.to(accelerator.device)  # type: ignore[arg-type]  # a wrapped stub
        self._score = TokenLogprobs(model, config)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = adamw(self._parameters, config.optimizer)
        self._max_grad_norm = config.optimizer.max_grad_norm
        self._accelerator = accelerator

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scored: tuple[Tensor, Tensor] = self._score(batch)
        return scored

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> float:
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm, error_if_nonfinite=False)
        if torch.isfinite(norm):
            self._optimizer.param_groups[0]["lr"] = lr
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm.item()

    def weights(self) -> AbstractContextManager[Emu3ForCausalLM]:
        return nullcontext(self.model)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        return merged(self.model)

    def named_adapters(self) -> Iterator[tuple[str, Tensor]]:
        return adapters(self.model)

    def save_optimizer(self, folder: Path | None) -> None:
        if folder is not None:
            save_optimizer(folder, self.model, self._optimizer)

    def load_optimizer(self, folder: Path) -> None:
        load_optimizer(folder, self.model, self._optimizer)

    def _sum_gradients(self) -> None:
        """Every rank gets the sum of all ranks' gradients; a rank without rollouts adds zeros."""
        if self._accelerator.num_processes == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        flat = self._accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
        sizes = [gradient.numel() for gradient in gradients]
        for parameter, part in zip(self._parameters, flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
