"""AdamW as all trainers use it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from rl.config import OptimizerConfig


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
