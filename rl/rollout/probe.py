"""Proof that a sampling engine holds the trainer's weights: what it samples has the log-probabilities that they say.

A few tiny grids behind a prompt of one token, sampled as every rollout is and scored by the trainer as it scores them.
Grammar, temperature and weights are in it, so the gap is rounding if both sides agree in all three.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from emu3.errors import UserError
from emu3.mllm.grammar import GridGrammar
from emu3.mllm.layout import TokenLayout
from rl.logprobs import pack
from rl.rollout.protocol import Prompt, Rollout
from rl.training.protocol import Trainer

SIDE = 4
SEEDS = tuple((0, sample) for sample in range(4))


def probe_prompt(layout: TokenLayout) -> Prompt:
    """The same one each time; it is answered without thinking, which would take most of the time."""
    grammar = GridGrammar(layout, SIDE, SIDE, size_ids=(0,))
    return Prompt("probe", (layout.bos,), grammar, np.zeros((SIDE, SIDE), np.uint16), "", None)


@torch.no_grad()
def logprob_gap(trainer: Trainer, prompt: Prompt, rollouts: Sequence[Rollout], device: torch.device) -> float:
    """Mean distance, in nats per code, between the log-probabilities of the sampler and of `trainer`.

    rollouts: without thinking. All ranks call at once.
    """
    batch = pack([(prompt, rollout) for rollout in rollouts], "grammar", 0, device)
    scored_N, _ = trainer.score(batch)
    return (scored_N - batch.sampled_N).abs().mean().item()


def check_gap(gap: float, most: float) -> None:
    """Raise UserError if `gap`, in nats per code, is above `most` or not a number."""
    if not gap <= most:
        raise UserError(
            f"sampler and trainer differ by {gap:.3f} nats per code on a probe, more than compute.max_logprob_gap="
            f"{most}: they do not hold the same weights"
        )
