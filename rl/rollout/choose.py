"""The sampling engine that a run's settings ask for."""

from __future__ import annotations

import torch

from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.training import ranks
from rl.config import Config
from rl.rollout.local import LocalEngine
from rl.rollout.protocol import RolloutEngine
from rl.training.protocol import Trainer


def make_engine(config: Config, trainer: Trainer, tokenizer: TextTokenizer, device: torch.device) -> RolloutEngine:
    """An engine with `trainer`'s present weights. All ranks call at once. Raises UserError if it cannot run here."""
    if config.rollout.engine == "local":
        return LocalEngine(trainer.weights, tokenizer, config.rollout)
    from rl.rollout.vllm import VllmEngine

    engine = VllmEngine(trainer, tokenizer, config.rollout, config.compute, device)
    ranks.meet()  # engines start at their own pace
    engine.sync()
    return engine
