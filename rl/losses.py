"""From scores to a loss: advantages within each group, and policy objectives over a flat vector of tokens.

Advantages compare each rollout with the other rollouts of its prompt: A = (r - mean) / (std + 1e-4) over the group,
with the population standard deviation, as EARL's published code has it; `dr_grpo` leaves out the division, which gives
groups of nearly equal scores the weight of the others (Liu et al. 2025). Two masks are added. A rollout without a score
(the judge was out of reach, or its reply could not be read) is unknown, not bad: it enters neither mean nor std and is
not trained on. A group whose scores are all equal, or of which too few are known, says nothing about what to prefer;
`drop_constant` leaves it out of the loss and of its token count, otherwise (the paper) it stays in with advantage 0 and
still feels the KL term. What is left out has no KL term, and the token count then varies: 576 to 2,880 tokens a step in
the quickstart, where 2 to 10 of 16 groups prefer something. A floor under the std keeps a difference that no judge can
mean (two scores 0.001 apart) from becoming an advantage of 0.83.

The objectives take every scored token of every completion in a micro-batch, without padding. Each function gives a
micro-batch's part of the loss of a whole optimizer step: what it divides by (`Totals`) is counted over all
micro-batches and ranks, so their split cannot change the sum. With w = exp(lp - old), A the advantage of the
completion, |y| its scored tokens, R completions in the step:

    paper       sum over tokens of  -lp A + kl k3                        / tokens of the rank, mean over ranks
    corrected   sum over tokens of  -min(w A, clip(w) A) + kl w k3       / tokens of the step
    grpo        the same with kl k3, each completion's tokens            / (R |y|)        (Shao et al. 2024, eq. 3)
    dr_grpo     as `corrected`, but all tokens                           / (R longest)    (Liu et al. 2025, eq. 3)
    dapo        as `corrected` with another upper clip                                    (Yu et al. 2025, eq. 8)

`longest` is what a completion could have at most, the same in every step. k3 = exp(ref - lp) - 1 - (ref - lp) is the
unbiased, never negative estimate of KL(policy || reference) for tokens drawn from the policy (Schulman, "Approximating
KL divergence", 2020). Its value is unbiased, its gradient is not: the mean of grad k3 over the policy's tokens is the
gradient of KL(reference || policy), and for tokens of an older policy neither holds. w k3, with w in the gradient, has
the value and the gradient of KL(policy || reference) in both cases. Left out: entropy bonus, sequence-level ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emu3.extensions import load_extension
from rl.config import ObjectiveConfig

STD_EPSILON = 1e-4


def constant_groups(rewards_P_G: Tensor, min_known: int = 2) -> Tensor:
    """bool (P,): groups whose known rewards are all equal, those with fewer than `min_known` known ones included.

    rewards_P_G: (P, G), NaN where there is no score.
    """
    unknown_P_G = rewards_P_G.isnan()
    highest_P = rewards_P_G.masked_fill(unknown_P_G, -torch.inf).amax(dim=1)
    lowest_P = rewards_P_G.masked_fill(unknown_P_G, torch.inf).amin(dim=1)
    return (highest_P <= lowest_P) | ((~unknown_P_G).sum(dim=1) < min_known)


def group_advantages(
    rewards_P_G: Tensor,
    *,
    drop_constant: bool,
    divide_by_std: bool = True,
    min_known: int = 2,
    min_std: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Advantages and which rollouts are trained on.

    rewards_P_G: float64 (P, G), NaN where there is no score. divide_by_std: False gives A = r - mean. min_known: see
    `constant_groups`. min_std: floor of the standard deviation, in points of the reward.
    Returns advantages float64 (P, G), 0 where there is no score or nothing to prefer, and trained bool (P, G).
    """
    known_P_G = ~rewards_P_G.isnan()
    mean_P_1 = rewards_P_G.nanmean(dim=1, keepdim=True)
    std_P_1 = (rewards_P_G - mean_P_1).square().nanmean(dim=1, keepdim=True).sqrt()
    # By comparison, not by a std of 0: the mean of equal numbers can be off by a rounding, and its residue with it.
    constant_P_1 = constant_groups(rewards_P_G, min_known).unsqueeze(1)
    advantages_P_G = rewards_P_G - mean_P_1
    if divide_by_std:
        advantages_P_G = advantages_P_G / (std_P_1.clamp(min=min_std) + STD_EPSILON)
    advantages_P_G = advantages_P_G.masked_fill(~known_P_G | constant_P_1, 0.0)
    return advantages_P_G, known_P_G & ~constant_P_1 if drop_constant else known_P_G


@dataclass(frozen=True)
class Tokens:
    """N scored tokens.

    logprobs_N: of the policy, with gradient. old_N: of the policy that the update started from; equal to `logprobs_N`
    at the first update, where the ratio is 1 and its gradient is the policy gradient. sampled_N: as the sampler gave
    them. reference_N: of the frozen reference, None for no KL term. advantages_N: of each token's completion.
    length_N: scored tokens of each token's completion.
    """

    logprobs_N: Tensor
    old_N: Tensor
    sampled_N: Tensor
    reference_N: Tensor | None
    advantages_N: Tensor
    length_N: Tensor


@dataclass(frozen=True)
class Totals:
    """Counts over the whole step. tokens: scored ones. completions: trained on. longest: scored tokens of a completion
    at most. rank_tokens: tokens of this rank times the number of ranks."""

    tokens: float
    completions: float
    longest: float
    rank_tokens: float


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) per token, >= 0, in nats."""
    difference_N = reference_N - logprobs_N
    return difference_N.exp() - 1 - difference_N


def importance(tokens: Tokens, cap: float | None) -> Tensor:
    """Truncated importance weights, min(exp(old - sampled), cap), per token and without gradient; None gives ones.

    They make up for a sampler whose arithmetic is not the trainer's (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"), and for one whose
    weights are an update older (`rollout.ahead`). The KL term has no such weight, here as in TRL.
    """
    if cap is None:
        return torch.ones_like(tokens.old_N)
    return (tokens.old_N - tokens.sampled_N).exp().clamp(max=cap)


def paper(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """The loss of EARL's published code: no ratio, no clip, each rank's own mean."""
    return (-tokens.logprobs_N * tokens.advantages_N + _kl(tokens, objective)).sum() / totals.rank_tokens


def corrected(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """Clipped surrogate, every token of the step with the same weight. The default."""
    return _clipped(tokens, objective).sum() / totals.tokens


def grpo(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """Clipped surrogate as EARL prints it: the mean over completions of each one's mean over its tokens."""
    return (_clipped(tokens, objective) / tokens.length_N).sum() / totals.completions


def dr_grpo(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """GRPO without its bias to short right and long wrong completions: one constant for all lengths and steps."""
    return _clipped(tokens, objective).sum() / (totals.completions * totals.longest)


def dapo(tokens: Tokens, totals: Totals, objective: ObjectiveConfig) -> Tensor:
    """Clip-higher: `clip_high` leaves unlikely tokens more room to grow than `clip` leaves likely ones to shrink.

    Its dynamic sampling is `rollout.rounds`, which any objective can have; its authors use no KL term.
    """
    return _clipped(tokens, objective).sum() / totals.tokens


def outside_clip(tokens: Tokens, objective: ObjectiveConfig) -> Tensor:
    """bool (N,): tokens whose ratio is beyond the preset's bounds. `paper` has none: none is."""
    ratio_N = (tokens.logprobs_N - tokens.old_N).exp()
    low, high = objective.clip_bounds
    return (ratio_N < low) | (ratio_N > high)


Objective = Callable[[Tokens, Totals, ObjectiveConfig], Tensor]
"""A micro-batch's part of the loss of a whole step, a scalar with gradient."""

OBJECTIVES: dict[str, Objective] = {
    "paper": paper,
    "corrected": corrected,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
}


def objective_of(config: ObjectiveConfig) -> Objective:
    """The formula of a config: the preset's, or one's own. Raises UserError if that cannot be loaded."""
    if config.own is None:
        return OBJECTIVES[config.preset]
    own: Objective = load_extension(config.own, "objective.own", "(tokens, totals, objective)")
    return own


def _clipped(tokens: Tokens, objective: ObjectiveConfig) -> Tensor:
    ratio_N = (tokens.logprobs_N - tokens.old_N).exp()
    clipped_N = ratio_N.clamp(*objective.clip_bounds)
    loss_N = -torch.minimum(ratio_N * tokens.advantages_N, clipped_N * tokens.advantages_N)
    return importance(tokens, objective.importance_cap) * loss_N + _kl(tokens, objective)


def _kl(tokens: Tokens, objective: ObjectiveConfig) -> Tensor:
    if tokens.reference_N is None:
        return torch.zeros_like(tokens.logprobs_N)
    kl_N = k3(tokens.logprobs_N, tokens.reference_N)
    if objective.weighs_kl:
        kl_N = (tokens.logprobs_N - tokens.old_N).exp() * kl_N
    return objective.kl * kl_N
