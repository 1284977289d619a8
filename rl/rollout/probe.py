"""Proof that a sampling engine holds the trainer's weights: what it samples has the log-probabilities that they say.

A few tiny grids behind a prompt of one token, sampled as every rollout is and scored by the trainer as it scores them.
Grammar, temperature and weights are in it, so the gap is rounding if both sides agree in all three.

Measured between vLLM and the trainer on a CPU, random models of 2 x 128 to 16 x 1,024 layers and channels, means over
64 codes of 4,096, by the entropy of a code (in nats; a uniform one has 8.3):

| gap, nats per code              | 8.2 | 7.7 | 5.9 |
|---|---|---|---|
| float32                         | 3e-7 to 1e-6 | 1e-6 to 5e-6 | 2e-6 to 2e-5 |
| bfloat16                        | 0.003 to 0.004 | 0.012 to 0.030 | 0.04 to 0.17 |
| float32, weights off by 1e-5    | 2e-4 to 0.001 | 3e-4 to 0.004 | 8e-4 to 0.008 |
| bfloat16, weights off by 1e-3   | 0.02 to 0.12 | 0.04 to 0.37 | 0.10 to 0.74 |

In bfloat16 it is the layers that differ, not the head (`head_logits`), and the deeper and the more certain a random
model is, the more it magnifies their rounding. So the bound of bfloat16 finds weights that were never set, forgotten
tensors and another temperature, not a step or two that were missed; that of float32 finds weights off by 1e-4, in deep
models by 1e-5, and leaves room for attention in TF32 on GPUs, which has not been measured.
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
MOST = {"fp32": 0.005, "bf16": 0.1}  # by `compute.precision`; nats per code
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
            f"sampler and trainer differ by {gap:.3g} nats per code on a probe, more than compute.max_probe_gap="
            f"{most}: they do not hold the same weights"
        )
