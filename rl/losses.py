"""Policy losses over a flat vector of tokens: every token of every rollout in a micro-batch, no padding.

`tokens` is the denominator, chosen by the caller: a sum over micro-batches (and ranks) of losses with one common
denominator is the loss of the whole step, so the split into micro-batches cannot change it.

Both losses carry the KL term beta * k3 against a frozen reference, k3 = exp(ref - lp) - 1 - (ref - lp): the
unbiased, never negative estimate of KL(policy || reference) for tokens drawn from the policy (Schulman,
"Approximating KL divergence", 2020). Left out: per-response means and other aggregations, entropy bonus,
sequence-level ratios.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) per token, >= 0, in nats."""
    difference_N = reference_N - logprobs_N
    return difference_N.exp() - 1 - difference_N


def grpo_loss(
    logprobs_N: Tensor,
    old_N: Tensor,
    reference_N: Tensor | None,
    advantages_N: Tensor,
    *,
    clip: float,
    kl: float,
    tokens: float,
) -> Tensor:
    """Clipped surrogate of GRPO, summed over tokens and divided by `tokens`.

    logprobs_N: of the policy, with gradient. old_N: of the policy that the update started from; equal to
    `logprobs_N` at the first update, where the ratio is 1 and its gradient is the policy gradient.
    reference_N: of the frozen reference, None for no KL term. advantages_N: one per token.
    """
    ratio_N = (logprobs_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - clip, 1 + clip)
    loss_N = -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    if reference_N is not None:
        loss_N = loss_N + kl * k3(logprobs_N, reference_N)
    return loss_N.sum() / tokens


def paper_loss(
    logprobs_N: Tensor, reference_N: Tensor | None, advantages_N: Tensor, *, kl: float, tokens: float
) -> Tensor:
    """The loss of EARL's published code: -lp * A + beta * k3, no ratio and no clip, divided by `tokens`."""
    loss_N = -logprobs_N * advantages_N
    if reference_N is not None:
        loss_N = loss_N + kl * k3(logprobs_N, reference_N)
    return loss_N.sum() / tokens
