"""A loss of one's own: REINFORCE with the ratio bounded from above alone, and without a lower clip.

    bash scripts/rl.sh rl/configs/earl.jsonnet objective.own=docs/templates/objective.py:capped

A function of the tokens of a micro-batch, the counts of the whole step, and the settings `objective.*`; rl/losses.py
says what is in them. It gives a part of the step's loss, so it divides by counts of the step, not of the micro-batch.
Advantages, scored tokens and the metrics `kl` and `clip_share` stay those of `objective.preset`.
"""

from __future__ import annotations

from torch import Tensor

from rl.config import ObjectiveConfig
from rl.losses import Tokens, Totals, k3

HIGHEST_RATIO = 2.0


def capped(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """Sum over tokens of -min(w, 2) A lp + kl k3, divided by the step's tokens; w has no gradient."""
    ratio_N = (tokens.logprobs_N - tokens.old_N).exp().clamp(max=HIGHEST_RATIO).detach()
    loss_N = -ratio_N * tokens.advantages_N * tokens.logprobs_N
    if tokens.reference_N is not None:
        loss_N = loss_N + objective.kl * k3(tokens.logprobs_N, tokens.reference_N)
    return loss_N.sum() / totals.tokens
