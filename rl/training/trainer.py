"""What the training step asks of whatever holds the policy and its optimizer; and the trainer without sharding.

`WholeTrainer` keeps everything on each rank: weights, gradients and AdamW's two moments, in float32. Gradients are
summed over ranks; equal sums make equal steps, so that all ranks keep equal weights. `rl.training.zero` shards by
DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Emu3ForCausalLM

from emu3.training.lora import ADAPTER, adapters, add_lora, merged
from emu3.training.state import load_optimizer, save_optimizer
from rl.config import Config, OptimizerConfig
from rl.logprobs import Batch
from rl.training.policy import Reference, TokenLogprobs, frozen_reference, load_model


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


def make_trainer(
    config: Config, accelerator: Accelerator, resumed: Path | None = None
) -> tuple[Trainer, Reference | None]:
    """resumed: folder of the checkpoint to go on from. The reference is None without a KL term."""
    whole_checkpoint = resumed is not None and config.lora is None
    model = load_model(resumed / "model" if resumed and whole_checkpoint else config.model, config)
    adapted = add_lora(model, config.lora.rank, config.lora.alpha, config.seed) if config.lora else None
    if adapted is not None and resumed is not None:
        model.load_state_dict(load_file(resumed / ADAPTER), strict=False)
    if config.compute.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode only; there is no dropout
    trainer: Trainer
    if config.compute.zero:
        from rl.training.zero import ZeroTrainer

        trainer = ZeroTrainer(model, config, accelerator)
    else:
        trainer = WholeTrainer(model, config, accelerator)
    if resumed is not None:
        trainer.load_optimizer(resumed)
    if not config.objective.kl:
        return trainer, None
    if adapted is not None and config.compute.reference == "adapter_off":
        return trainer, Reference(trainer.score, adapted.disable_adapter)
    return trainer, frozen_reference(config, accelerator)


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


def adamw(parameters: Iterable[nn.Parameter], settings: OptimizerConfig) -> torch.optim.AdamW:
    """One group; the learning rate is set before each step."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
