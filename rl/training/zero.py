"""The policy sharded over ranks by DeepSpeed: ZeRO-2 (gradients and optimizer) or ZeRO-3 (weights as well).

DeepSpeed is called directly, not through accelerate's wrapper: a step has as many micro-batches as its prompts need,
so where the last one is has to be said for each step. Its gradients are means over ranks, ours are sums: losses are
multiplied by the number of ranks.

Sampling and saving need the policy as an ordinary model. That is a copy of its modules around the same
parameter objects, made before DeepSpeed puts its hooks on the first; while the parameters are gathered, it is whole.

State on disk is by parameter and not by rank (`state`), so that a run may go on with another number of ranks.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import Emu3ForCausalLM

from emu3.training import ranks
from emu3.training.state import adapters, gathered, load_sharded, merged, sharded_writer, start_communication
from rl.config import Config
from rl.logprobs import Batch
from rl.training.policy import ScoreBatch, TokenLogprobs, adamw


class ZeroTrainer:
    """A `Trainer` on DeepSpeed; `compute.zero` is its stage."""

    lockstep = True

    def __init__(self, model: Emu3ForCausalLM, config: Config, accelerator: Accelerator) -> None:
        self.model = _without_hooks(model, accelerator.device)
        self._accelerator = accelerator
        self._stage = config.compute.zero
        self._copies = config.compute.save_in_background
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._engine = _initialize(
            TokenLogprobs(model, config),
            config,
            config.compute.zero,
            accelerator,
            optimizer=adamw(trainable, config.optimizer),
        )

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scored: tuple[Tensor, Tensor] = self._engine(batch)
        return scored

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._accelerator.num_processes)

    def step(self, lr: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    @contextmanager
    def weights(self) -> Iterator[Emu3ForCausalLM]:
        self._meet()
        with gathered(list(self.model.parameters())):
            yield self.model

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        self._meet()
        return merged(self.model, gathered)

    def named_adapters(self) -> Iterator[tuple[str, Tensor]]:
        self._meet()
        return adapters(self.model, gathered)

    def optimizer_writer(self, folder: Path, first: int) -> Callable[[], list[Path]]:
        return sharded_writer(self._engine, self.model, first, folder, copy=self._copies)

    def load_optimizer(self, folder: Path) -> None:
        load_sharded(folder, self._engine, self.model)

    def _meet(self) -> None:
        """Before weights are gathered: ranks come from work of their own, such as the run's report."""
        if self._stage == 3:
            ranks.meet()


def sharded(frozen: TokenLogprobs, config: Config, accelerator: Accelerator) -> ScoreBatch:
    """A frozen model with its weights sharded over the ranks, whatever the stage of the policy."""
    score: ScoreBatch = _initialize(frozen, config, 3, accelerator, optimizer=None)
    return score


def _initialize(
    module: TokenLogprobs,
    config: Config,
    stage: int,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer | None,
) -> Any:
    """DeepSpeed's engine around `module`."""
    start_communication(accelerator.device)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    zero: dict[str, Any] = {"stage": stage}
    if config.compute.offload_optimizer and optimizer is not None:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": accelerator.device.type == "cuda"}
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # only for its logs: a batch is what `backward` was given
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.compute.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    ranks.meet()  # they were loading
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    if stage == 3:
        deepspeed.zero.register_external_parameter(module, module.model.lm_head.weight)
    return engine


def _without_hooks(model: Emu3ForCausalLM, device: torch.device) -> Emu3ForCausalLM:
    shared: dict[int, nn.Parameter] = {id(parameter): parameter for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared)  # type: ignore[arg-type]
    for buffer in copied.buffers():
        buffer.data = buffer.data.to(device)
    return copied
