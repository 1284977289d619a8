"""Losses: against arithmetic written out, against TRL's formulas, and the gradient at the first update."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl.losses import grpo_loss, k3, paper_loss


def tokens(seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities of policy, old policy and reference, and advantages; the ratios lie well beyond the clip."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(*shape, generator=generator, dtype=torch.float64)
    old = logprobs + 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    reference = logprobs + 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    return logprobs.requires_grad_(), old, reference, advantages


def trl_loss(
    kind: str, logprobs: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor, longest: int
) -> Tensor:
    """TRL's `grpo`, `dr_grpo` and `dapo` losses of one batch, from the formulas in its documentation: (B, T) tokens,
    mask of the completion's, clip 0.2, beta 0.01, `longest` = max_completion_length."""
    ratio = torch.exp(logprobs - old)
    advantages = advantages[:, None]
    surrogate = torch.min(ratio * advantages, torch.clip(ratio, 0.8, 1.2) * advantages)
    divergence = torch.exp(reference - logprobs) - (reference - logprobs) - 1
    per_token = -(surrogate - 0.01 * divergence) * mask
    if kind == "grpo":
        return (per_token.sum(1) / mask.sum(1)).mean()
    if kind == "dr_grpo":
        return per_token.sum() / (len(mask) * longest)
    return per_token.sum() / mask.sum()


def ours(logprobs: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    flat = mask.bool()
    advantages = advantages[:, None].expand_as(logprobs)
    return grpo_loss(
        logprobs[flat], old[flat], reference[flat], advantages[flat], clip=0.2, kl=0.01, tokens=mask.sum().item()
    )


def test_grpo_loss_written_out() -> None:
    """Guards signs, the pessimistic side of the clip, and the direction of the KL."""
    logprobs, old, reference, advantages = tokens(0, 40)
    expected = 0.0
    for new, before, frozen, advantage in zip(
        logprobs.tolist(), old.tolist(), reference.tolist(), advantages.tolist(), strict=True
    ):
        ratio = math.exp(new - before)
        gain = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        expected += -gain + 0.01 * (math.exp(frozen - new) - 1 - (frozen - new))
    loss = grpo_loss(logprobs, old, reference, advantages, clip=0.2, kl=0.01, tokens=7)
    assert loss.item() == pytest.approx(expected / 7, rel=1e-12)


def test_dapo_is_our_normalisation() -> None:
    """Answers of unequal length: TRL's `dapo` (its default) divides by all tokens of the step, as we do."""
    values = tokens(1, 4, 9)
    mask = (torch.arange(9) < torch.tensor([9, 3, 6, 1])[:, None]).double()
    assert ours(*values, mask).item() == pytest.approx(trl_loss("dapo", *values, mask, longest=9).item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
def test_all_trl_normalisations_agree_on_grids(kind: str) -> None:
    """The answers of one grid all have the same length, so the three differ by nothing."""
    values = tokens(2, 4, 9)
    mask = torch.ones(4, 9, dtype=torch.float64)
    loss, theirs = ours(*values, mask), trl_loss(kind, *values, mask, longest=9)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-12)
    gradient, their_gradient = (torch.autograd.grad(x, values[0], retain_graph=True)[0] for x in (loss, theirs))
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-12, atol=0)


def test_first_update_is_the_policy_gradient() -> None:
    """With old = new the ratio is 1 and the gradient is -A * grad log p; a detached ratio, or a clip that is active
    at 1, would break this silently."""
    logprobs, _, _, advantages = tokens(3, 30)
    loss = grpo_loss(logprobs, logprobs.detach(), None, advantages, clip=0.2, kl=0.0, tokens=30)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, -advantages / 30, rtol=1e-12, atol=0)
    assert loss.item() == pytest.approx(-advantages.mean().item())


def test_paper_loss_written_out() -> None:
    logprobs, _, reference, advantages = tokens(4, 40)
    expected = sum(
        -new * advantage + 0.01 * (math.exp(frozen - new) - 1 - (frozen - new))
        for new, frozen, advantage in zip(logprobs.tolist(), reference.tolist(), advantages.tolist(), strict=True)
    )
    loss = paper_loss(logprobs, reference, advantages, kl=0.01, tokens=40)
    assert loss.item() == pytest.approx(expected / 40, rel=1e-12)
    assert paper_loss(logprobs, None, advantages, kl=0.01, tokens=1).item() == pytest.approx(
        -(logprobs * advantages).sum().item()
    )


def test_both_objectives_have_one_gradient_on_policy() -> None:
    """What differs between the presets at the first update is what is scored and the denominator, not the loss."""
    logprobs, _, reference, advantages = tokens(5, 40)
    losses = (
        grpo_loss(logprobs, logprobs.detach(), reference, advantages, clip=0.2, kl=0.1, tokens=40),
        paper_loss(logprobs, reference, advantages, kl=0.1, tokens=40),
    )
    first, second = (torch.autograd.grad(loss, logprobs)[0] for loss in losses)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-15)


def test_k3_is_an_unbiased_estimate_of_the_kl() -> None:
    """Its mean over tokens drawn from the policy is KL(policy || reference); the reverse direction would not be."""
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    estimate = (policy * k3(policy.log(), reference.log())).sum()
    assert estimate.item() == pytest.approx((policy * (policy / reference).log()).sum().item())
