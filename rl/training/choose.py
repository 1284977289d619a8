"""The trainer and the reference that a run's settings ask for."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file

from emu3.training.lora import ADAPTER, add_lora
from rl.config import Config
from rl.training.policy import load_model
from rl.training.protocol import Trainer
from rl.training.reference import Reference, frozen_reference
from rl.training.whole import WholeTrainer


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
