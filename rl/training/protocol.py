"""What the training step asks of whatever holds the policy and its optimizer.

`whole` keeps everything on each rank, `zero` shards by DeepSpeed. All methods but `score` and `backward` are called by
all ranks at once; those two as well where `lockstep` is true, because sharded weights are gathered and sharded
gradients reduced while they run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import Emu3ForCausalLM

from rl.logprobs import Batch


class Trainer(Protocol):
    """The policy in training. model: its modules and config; the weights are there within `weights` only."""

    model: Emu3ForCausalLM
    lockstep: bool

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N,) with gradient and entropies (N,) without, as `rl.logprobs.token_logprobs`."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of `loss`. last: what follows is `step`."""
        ...

    def step(self, lr: float) -> float:
        """Sum the gradients over ranks, clip, take an optimizer step at `lr`, forget the gradients.

        Returns their norm before clipping. If it is not finite the weights are not to be used any more.
        """
        ...

    def weights(self) -> AbstractContextManager[Emu3ForCausalLM]:
        """The policy with all of its weights present on this rank, for sampling and saving, not for training."""
        ...

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of the policy, whole, under its name in a checkpoint; LoRA merged. One at a time is present."""
        ...

    def named_adapters(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the LoRA adapters, as `named_weights`."""
        ...

    def save_optimizer(self, folder: Path | None) -> None:
        """Write into `folder` all that `load_optimizer` needs to go on bit for bit; None on ranks that do not write."""
        ...

    def load_optimizer(self, folder: Path) -> None:
        """Take up what `save_optimizer` wrote, on any number of ranks. Raises UserError if it does not fit."""
        ...
