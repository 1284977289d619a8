"""Policy objectives over a flat vector of tokens: every scored token of every answer in a micro-batch, no padding.

Each function gives a micro-batch's part of the loss of a whole optimizer step: what it divides by (`Totals`) is
counted over all micro-batches and ranks, so their split cannot change the sum. With w = exp(lp - old), A the advantage
of the answer, |y| its scored tokens, R answers in the step:

    paper       sum over tokens of  -lp A + kl k3                        / tokens of the rank, mean over ranks
    corrected   sum over tokens of  -min(w A, clip(w) A) + kl k3         / tokens of the step
    grpo        the same, but each answer's tokens                       / (R |y|)        (Shao et al. 2024, eq. 3)
    dr_grpo     the same, but all tokens                                 / (R longest)    (Liu et al. 2025, eq. 3)
    dapo        as `corrected` with another upper clip                                    (Yu et al. 2025, eq. 8)

Their advantages differ as well, see `rl.advantages`. k3 = exp(ref - lp) - 1 - (ref - lp) is the unbiased, never
negative estimate of KL(policy || reference) for tokens drawn from the policy (Schulman, "Approximating KL
divergence", 2020). Left out: entropy bonus, sequence-level ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.config import ObjectiveConfig


@dataclass(frozen=True)
class Tokens:
    """N scored tokens.

    logprobs_N: of the policy, with gradient. old_N: of the policy that the update started from; equal to `logprobs_N`
    at the first update, where the ratio is 1 and its gradient is the policy gradient. sampled_N: as the sampler gave
    them. reference_N: of the frozen reference, None for no KL term. advantages_N: of each token's answer.
    length_N: scored tokens of each token's answer.
    """

    logprobs_N: Tensor
    old_N: Tensor
    sampled_N: Tensor
    reference_N: Tensor | None
    advantages_N: Tensor
    length_N: Tensor


@dataclass(frozen=True)
class Totals:
    """Counts over the whole step. tokens: scored ones. answers: trained on. longest: scored tokens of the longest.
    rank_tokens: tokens of this rank times the number of ranks."""

    tokens: float
    answers: float
    longest: float
    rank_tokens: float


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) per token, >= 0, in nats."""
    difference_N = reference_N - logprobs_N
    return difference_N.exp() - 1 - difference_N


def importance(tokens: Tokens, cap: float | None) -> Tensor:
    """Truncated importance weights, min(exp(old - sampled), cap), per token and without gradient; None gives ones.

    They make up for a sampler whose arithmetic is not the trainer's (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training").
    """
    if cap is None:
        return torch.ones_like(tokens.old_N)
    return (tokens.old_N - tokens.sampled_N).exp().clamp(max=cap)


def paper(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """The loss of EARL's published code: no ratio, no clip, each rank's own mean."""
    loss_N = -tokens.logprobs_N * tokens.advantages_N
    return (importance(tokens, objective.importance_cap) * loss_N + _kl(tokens, objective)).sum() / totals.rank_tokens


def corrected(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """Clipped surrogate, every token of the step with the same weight. The default."""
    return _clipped(tokens, objective, objective.clip).sum() / totals.tokens


def grpo(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """Clipped surrogate as EARL prints it: the mean over answers of each answer's mean over its tokens."""
    return (_clipped(tokens, objective, objective.clip) / tokens.length_N).sum() / totals.answers


def dr_grpo(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """GRPO without its bias to short right and long wrong answers: one constant for all lengths."""
    return _clipped(tokens, objective, objective.clip).sum() / (totals.answers * totals.longest)


def dapo(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """Clip-higher: `clip_high` leaves unlikely tokens more room to grow than `clip` leaves likely ones to shrink.

    Its dynamic sampling is `rollout.rounds`, which any objective can have; its authors use no KL term.
    """
    return _clipped(tokens, objective, objective.clip_high).sum() / totals.tokens


OBJECTIVES: dict[str, Callable[[Tokens, Totals, ObjectiveConfig], Tensor]] = {
    "paper": paper,
    "corrected": corrected,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
}


def _clipped(tokens: Tokens, objective: ObjectiveConfig, clip_high: float) -> Tensor:
    ratio_N = (tokens.logprobs_N - tokens.old_N).exp()
    clipped_N = ratio_N.clamp(1 - objective.clip, 1 + clip_high)
    loss_N = -torch.minimum(ratio_N * tokens.advantages_N, clipped_N * tokens.advantages_N)
    return importance(tokens, objective.importance_cap) * loss_N + _kl(tokens, objective)


def _kl(tokens: Tokens, objective: ObjectiveConfig) -> Tensor:
    if tokens.reference_N is None:
        return torch.zeros_like(tokens.logprobs_N)
    return objective.kl * k3(tokens.logprobs_N, tokens.reference_N)
