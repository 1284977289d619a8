"""Objectives: against arithmetic written out, against TRL's own loss, and the gradient at the first update."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.config import ObjectiveConfig
from rl.losses import OBJECTIVES, Tokens, Totals, corrected, k3, outside_clip, paper

LENGTHS = torch.tensor([9, 3, 6, 1])


def grids(seed: int, completions: int, longest: int) -> dict[str, Tensor]:
    """(completions, longest) log-probabilities of policy, old policy, sampler and reference, and advantages; the ratios
    lie well beyond the clip."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(completions, longest, generator=generator, dtype=torch.float64)
    near = [logprobs + 0.5 * torch.randn(logprobs.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    advantages = torch.randn(completions, 1, generator=generator, dtype=torch.float64).expand_as(logprobs)
    names = ("logprobs", "old", "sampled", "reference", "advantages")
    return dict(zip(names, (logprobs.requires_grad_(), *near, advantages), strict=True))


def loss_of(preset: str, values: dict[str, Tensor], mask: Tensor, **objective: Any) -> Tensor:
    """Our loss of the tokens under `mask`, as one micro-batch of one rank."""
    flat, lengths = mask.bool(), mask.sum(1, keepdim=True).expand_as(mask)
    chosen = {name: value[flat] for name, value in values.items()}
    config = ObjectiveConfig(preset=preset, **objective)  # type: ignore[arg-type]
    tokens = Tokens(
        chosen["logprobs"],
        chosen["old"],
        chosen["sampled"],
        chosen["reference"] if config.kl else None,
        chosen["advantages"],
        lengths[flat],
    )
    count = mask.sum().item()
    totals = Totals(tokens=count, completions=len(mask), longest=mask.sum(1).max().item(), rank_tokens=count)
    return OBJECTIVES[preset](tokens, totals, config)


def ragged() -> Tensor:
    return (torch.arange(9) < LENGTHS[:, None]).double()


def trl_loss(
    kind: str, values: dict[str, Tensor], mask: Tensor, *, kl: float, high: float, cap: float | None
) -> Tensor:
    """The loss that TRL's trainer computes from these log-probabilities, by its own code."""
    trainer = pytest.importorskip("trl").GRPOTrainer
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(use_bias_correction_kl=kind != "grpo", delta=None),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (values["logprobs"], torch.zeros_like(mask), None),
        loss_type=kind,
        beta=kl,
        epsilon_low=0.2,
        epsilon_high=high,
        max_completion_length=mask.shape[1],
        importance_sampling_level="token",
        use_vllm=cap is not None,
        vllm_importance_sampling_correction=True,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
    )
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": values["advantages"],
        "old_per_token_logps": values["old"],
        "ref_per_token_logps": values["reference"],
        "importance_sampling_ratio": (values["old"] - values["sampled"]).exp().clamp(max=cap or math.inf),
        "num_items_in_batch": mask.sum(),
    }
    loss: Tensor = trainer._compute_loss(stub, None, inputs)
    return loss


@pytest.mark.parametrize("mask", [ragged(), torch.ones(4, 9, dtype=torch.float64)], ids=["ragged", "equal lengths"])
@pytest.mark.parametrize(("kl", "cap"), [(0.0, None), (0.01, None), (0.01, 1.1)])
@pytest.mark.parametrize(
    ("preset", "kind", "high"),
    [("corrected", "dapo", 0.2), ("grpo", "grpo", 0.2), ("dr_grpo", "dr_grpo", 0.2), ("dapo", "dapo", 0.28)],
)
def test_losses_and_gradients_are_trls(
    preset: str, kind: str, high: float, kl: float, cap: float | None, mask: Tensor
) -> None:
    """Signs, the pessimistic side of the clip, the direction of the KL, what each divides by, and what the importance
    weights weigh: all of it against the trainer that most people use."""
    values = grids(1, *mask.shape)
    loss = loss_of(preset, values, mask, kl=kl, importance_cap=cap)
    theirs = trl_loss(kind, values, mask, kl=kl, high=high, cap=cap)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-12)
    gradient, their_gradient = (torch.autograd.grad(x, values["logprobs"])[0] for x in (loss, theirs))
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-12, atol=1e-15)


def test_corrected_written_out() -> None:
    values = grids(0, 1, 40)
    expected = 0.0
    rows = (values[name][0].tolist() for name in ("logprobs", "old", "reference", "advantages"))
    for new, before, frozen, advantage in zip(*rows, strict=True):
        ratio = math.exp(new - before)
        gain = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        expected += -gain + 0.01 * ratio * (math.exp(frozen - new) - 1 - (frozen - new))
    assert loss_of("corrected", values, torch.ones(1, 40), kl=0.01).item() == pytest.approx(expected / 40, rel=1e-12)


def test_paper_written_out() -> None:
    """No ratio and no clip, and the mean over the rank's own tokens."""
    values = grids(4, 1, 40)
    rows = (values[name][0].tolist() for name in ("logprobs", "reference", "advantages"))
    expected = sum(
        -new * advantage + 0.01 * (math.exp(frozen - new) - 1 - (frozen - new))
        for new, frozen, advantage in zip(*rows, strict=True)
    )
    assert loss_of("paper", values, torch.ones(1, 40), kl=0.01).item() == pytest.approx(expected / 40, rel=1e-12)


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_a_split_into_micro_batches_changes_nothing(preset: str) -> None:
    """Totals are of the step: a mean per micro-batch would weigh the tokens of short completions more."""
    values, mask = grids(2, 4, 9), ragged()
    whole = loss_of(preset, values, mask, kl=0.01)
    config = ObjectiveConfig(preset=preset, kl=0.01)  # type: ignore[arg-type]
    totals = Totals(tokens=mask.sum().item(), completions=4, longest=9, rank_tokens=mask.sum().item())
    parts = []
    for row, length in enumerate(LENGTHS.tolist()):
        part = {name: value[row, :length] for name, value in values.items()}
        fields = {f"{name}_N": value for name, value in part.items()}
        tokens = Tokens(**fields, length_N=torch.full((length,), length))
        parts.append(OBJECTIVES[preset](tokens, totals, config))
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_first_update_is_the_policy_gradient(preset: str) -> None:
    """With old = new the ratio is 1 and the gradient is -A * grad log p; a detached ratio, or a clip that is active
    at 1, would break this silently. On completions of one length all objectives agree."""
    values = grids(3, 5, 6)
    values["old"] = values["logprobs"].detach()
    loss = loss_of(preset, values, torch.ones(5, 6), kl=0.0)
    (gradient,) = torch.autograd.grad(loss, values["logprobs"])
    torch.testing.assert_close(gradient, -values["advantages"] / 30, rtol=1e-12, atol=0)


def test_importance_weights_are_truncated_and_constant() -> None:
    """A sampler that found a token rarer than the trainer does gives a weight above 1, cut at the cap; none of it
    has a gradient, and the KL term, which is no sampled quantity of the update, is not weighed."""
    values = grids(6, 1, 30)
    values["old"] = values["logprobs"].detach()
    (plain,) = torch.autograd.grad(loss_of("corrected", values, torch.ones(1, 30), kl=0.0), values["logprobs"])
    loss = loss_of("corrected", values, torch.ones(1, 30), kl=0.0, importance_cap=1.5)
    (weighed,) = torch.autograd.grad(loss, values["logprobs"])
    weights = (values["old"] - values["sampled"]).exp().clamp(max=1.5)
    assert (weights == 1.5).any() and (weights < 1).any()
    torch.testing.assert_close(weighed, plain * weights, rtol=1e-12, atol=0)


def test_k3_is_an_unbiased_estimate_of_the_kl() -> None:
    """Its mean over tokens drawn from the policy is KL(policy || reference); the reverse direction would not be."""
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    estimate = (policy * k3(policy.log(), reference.log())).sum()
    assert estimate.item() == pytest.approx((policy * (policy / reference).log()).sum().item())


@pytest.mark.parametrize("kl_gradient", ["policy", "reference"])
def test_which_kl_the_gradient_is_of(kl_gradient: str) -> None:
    """The mean gradient over all tokens, each as often as the policy that sampled draws it. Weighed by the ratio it is
    that of KL(policy || reference), also after the policy has moved; as published, that of KL(reference || policy), and
    only where the policy has not moved."""
    logits = torch.tensor([0.3, -0.4, 1.1, 0.2], dtype=torch.float64, requires_grad=True)
    logprobs = logits.log_softmax(0)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    moved = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    for old in [logprobs.detach().exp(), *([moved] if kl_gradient == "policy" else [])]:
        nothing = torch.zeros(4, dtype=torch.float64)
        tokens = Tokens(logprobs, old.log(), old.log(), reference.log(), nothing, torch.ones(4))
        config = ObjectiveConfig(kl=1.0, clip=1e9, kl_gradient=kl_gradient)  # type: ignore[arg-type]
        per_token = [
            torch.autograd.grad(
                corrected(Tokens(*(value[i : i + 1] for value in vars(tokens).values())), Totals(1, 1, 1, 1), config),
                logits,
                retain_graph=True,
            )[0]
            for i in range(4)
        ]
        policy = logprobs.exp()
        ways = {
            "policy": (policy * (logprobs - reference.log())).sum(),
            "reference": (reference * (reference.log() - logprobs)).sum(),
        }
        (expected,) = torch.autograd.grad(ways[kl_gradient], logits, retain_graph=True)
        found = torch.stack([weight * gradient for weight, gradient in zip(old, per_token, strict=True)]).sum(0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("corrected", [True, False, True]), ("dapo", [True, False, False]), ("paper", [False, False, False])],
)
def test_what_counts_as_clipped_is_what_the_preset_clips(preset: str, expected: list[bool]) -> None:
    """`clip_share` counted `dapo`'s ratios between 1.2 and 1.28 as clipped, and `paper`'s, which has no clip."""
    ratios = torch.tensor([0.7, 1.1, 1.25]).log()
    nothing = torch.zeros(3)
    tokens = Tokens(ratios, nothing, nothing, None, nothing, nothing)
    assert outside_clip(tokens, ObjectiveConfig(preset=preset)).tolist() == expected  # type: ignore[arg-type]


def test_a_rank_without_a_reference_has_no_kl_term() -> None:
    values = grids(5, 1, 4)
    one = torch.ones(4)
    tokens = Tokens(values["logprobs"][0], values["old"][0], values["sampled"][0], None, one, one * 4)
    totals = Totals(tokens=4, completions=1, longest=4, rank_tokens=4)
    for objective in (paper, corrected):
        with_kl = objective(tokens, totals, ObjectiveConfig(kl=5.0))
        assert with_kl.item() == objective(tokens, totals, ObjectiveConfig(kl=0.0)).item()
