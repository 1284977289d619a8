"""The policy in training, its optimizer and its reference, behind the protocol that the training step asks for.

`WholeTrainer` keeps everything on each rank: weights, gradients and AdamW's two moments, in float32. Gradients are
summed over ranks; equal sums make equal steps, so that all ranks keep equal weights. `rl.training.zero` shards by
DeepSpeed, which gathers weights in hooks around the forward passes of modules: so what it wraps is a module whose
forward pass is what training needs, log-probabilities (`TokenLogprobs`).

The reference is the frozen start of the policy, whose distance from it the KL term counts. Where it lives: `resident`,
a copy on each rank's device; `offloaded`, a copy in each rank's main memory, pinned, that visits the device once per
step; `sharded`, one copy over all ranks, gathered layer by layer; `adapter_off`, none, it is the policy without its
LoRA. Whichever it is, a step's log-probabilities are computed once and kept for all of its inner updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Emu3ForCausalLM

from emu3.mllm.language_model import load_language_model
from emu3.mllm.product import use_product
from emu3.training.state import ADAPTER, adapters, add_lora, load_optimizer, merged, optimizer_writer
from rl.config import Config, OptimizerConfig
from rl.logprobs import Batch, token_logprobs
from rl.shared_prefix import ATTENTION

ScoreBatch = Callable[[Batch], tuple[Tensor, Tensor]]
"""As `Trainer.score`."""


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
    use_product(model, config.compute.product)
    model.set_attn_implementation(ATTENTION if config.compute.attention == "sdpa" else config.compute.attention)
    return model


def precision(config: Config, device: torch.device) -> torch.autocast:
    """The autocast context of a run's forward passes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.compute.precision == "bf16")


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

    def optimizer_writer(self, folder: Path, first: int) -> Callable[[], list[Path]]:
        """Take all that `load_optimizer` needs to go on bit for bit, this rank's share of it: what is returned writes
        it into `folder`, in any thread, and gives the files. All ranks take part in the taking. first: bytes that rank
        0 has to write besides."""
        ...

    def load_optimizer(self, folder: Path) -> None:
        """Take up what `optimizer_writer` wrote, on any number of ranks. Raises UserError if it does not fit."""
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
    trainer = trainer_of(model, config, accelerator)
    if resumed is not None:
        trainer.load_optimizer(resumed)
    if not config.objective.kl:
        return trainer, None
    if adapted is not None and config.compute.reference == "adapter_off":
        return trainer, Reference(trainer.score, adapted.disable_adapter)
    return trainer, frozen_reference(config, accelerator)


def trainer_of(model: Emu3ForCausalLM, config: Config, accelerator: Accelerator) -> Trainer:
    """The trainer that the config asks for, around a model that has its adapters already."""
    if config.compute.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode only; there is no dropout
    if not config.compute.zero:
        return WholeTrainer(model, config, accelerator)
    from rl.training.zero import ZeroTrainer

    return ZeroTrainer(model, config, accelerator)


class WholeTrainer:
    """A `Trainer` without sharding."""

    lockstep = False

    def __init__(self, model: Emu3ForCausalLM, config: Config, accelerator: Accelerator) -> None:
        self.model: Emu3ForCausalLM = model.to(accelerator.device)  # type: ignore[arg-type]  # a wrapped stub
        self._score = TokenLogprobs(model, config)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = adamw(self._parameters, config.optimizer)
        self._max_grad_norm = config.optimizer.max_grad_norm
        self._copies = config.compute.save_in_background
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

    def optimizer_writer(self, folder: Path, first: int) -> Callable[[], list[Path]]:
        """All ranks hold the same: rank 0 writes it."""
        if not self._accelerator.is_main_process:
            return list
        return optimizer_writer(self.model, self._optimizer, folder, copy=self._copies)

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


class Reference:
    """Log-probabilities of a frozen model. score: of one batch. present: entered around the batches of a step."""

    def __init__(self, score: ScoreBatch, present: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
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
