"""The inverse of the cumulative distribution, on rows that are written down here, and the product that makes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from emu3.mllm.head import HEAD_ROWS, choose, head_logits, uniform_numbers

PROBABILITIES = torch.tensor([0.2, 0.0, 0.5, 0.3, 0.0], dtype=torch.float64)


def draw(uniform: float, temperature: float = 1.0, top_k: int | None = None) -> tuple[int, float]:
    index, logprob = choose(PROBABILITIES.log(), torch.tensor(uniform, dtype=torch.float64), temperature, top_k)
    return int(index), float(logprob)


@pytest.mark.parametrize(
    ("uniform", "index"), [(0.0, 0), (0.199, 0), (0.201, 2), (0.699, 2), (0.701, 3), (float(np.nextafter(1.0, 0.0)), 3)]
)
def test_the_uniform_number_names_the_token(uniform: float, index: int) -> None:
    """Guards the edges: 0 and the number next to 1 must not pick a token of probability 0."""
    assert draw(uniform) == (index, pytest.approx(float(PROBABILITIES[index].log())))


def test_top_k_renormalizes_the_draw_and_not_the_log_probability() -> None:
    """Guards the trainer's quantity: it does not know of the cut. Kept are 0.5 and 0.3, so 2 up to 0.625."""
    assert draw(0.0, top_k=2) == (2, pytest.approx(np.log(0.5)))
    assert draw(0.624, top_k=2)[0] == 2
    assert draw(0.626, top_k=2) == (3, pytest.approx(np.log(0.3)))
    assert draw(0.999, top_k=1)[0] == 2
    assert draw(0.1, top_k=50)[0] == 0


def test_temperature_scales_before_the_softmax() -> None:
    scaled = PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()
    assert draw(0.0, temperature=2.0) == (0, pytest.approx(float(scaled[0].log())))


def test_greedy_ignores_the_uniform_number() -> None:
    assert draw(0.999, temperature=0.0) == draw(0.0, temperature=0.0) == (2, pytest.approx(np.log(0.5)))


def test_logits_that_are_not_finite_stay_inside_the_row() -> None:
    """Guards against an index behind the row, which a GPU answers with a dead process."""
    logits = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0]])
    index, logprob = choose(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), 1.0, None)
    assert ((index >= 0) & (index < 2)).all()
    assert not logprob.isfinite().any()


def test_uniform_numbers_are_a_function_of_the_seed() -> None:
    """Guards reproducibility across versions: the generator and its seeding are part of a run's identity."""
    np.testing.assert_allclose(uniform_numbers((1, 2), 2), [0.2996269638247443, 0.0739441105013603], rtol=1e-15)
    np.testing.assert_array_equal(uniform_numbers((1, 2), 5), uniform_numbers((1, 2), 9)[:5])
    assert not np.array_equal(uniform_numbers((1, 2), 5), uniform_numbers((2, 1), 5))
    assert uniform_numbers((1, 2), 10_000).mean() == pytest.approx(0.5, abs=0.02)


def product(dtype: torch.dtype, codes: int = HEAD_ROWS + 77, channels: int = 256) -> tuple[Tensor, Tensor]:
    """Hidden states (3, 5, D) and a head (V, D), logits some 3 wide, more codes than are widened at a time."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, channels, generator=generator).to(dtype).requires_grad_()
    head = (3 * channels**-0.5 * torch.randn(codes, channels, generator=generator)).to(dtype).requires_grad_()
    return hidden, head


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_whole_precision_are_torchs_own(dtype: torch.dtype) -> None:
    """Guards the golden trajectories, which are float32: not a bit of them may move."""
    hidden, head = product(dtype)
    assert torch.equal(head_logits(hidden, head), F.linear(hidden, head))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_not_rounded(dtype: torch.dtype) -> None:
    """Against float64 of the same weights: sums of 256 products in float32 are off by 1e-5 at most, where a logit of
    size 8 in bfloat16 is off by up to 0.03."""
    hidden, head = product(dtype)
    exact = F.linear(hidden.double(), head.double()).log_softmax(-1)

    def error(logits: Tensor) -> float:
        return (logits.log_softmax(-1).double() - exact).abs().mean().item()

    logits = head_logits(hidden, head)
    assert logits.dtype == torch.float32 and logits.shape == (3, 5, HEAD_ROWS + 77)
    assert error(logits) < 1e-5
    assert error(F.linear(hidden, head).float()) > 3e-4


def test_gradients_are_those_of_the_rounded_product() -> None:
    """Bit for bit, and in float32 for a float32 model under autocast."""
    hidden, head = product(torch.bfloat16)
    gradient = torch.randn(3, 5, HEAD_ROWS + 77, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(head_logits(hidden, head), (hidden, head), gradient)
    theirs = torch.autograd.grad(F.linear(hidden, head).float(), (hidden, head), gradient)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))

    wide, head = product(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head_logits(wide, head)
        rounded = F.linear(wide, head).float()
    assert torch.equal(logits, head_logits(wide.bfloat16(), head.bfloat16())) and not torch.equal(logits, rounded)
    ours = torch.autograd.grad(logits, (wide, head), gradient)
    theirs = torch.autograd.grad(rounded, (wide, head), gradient)
    assert all(torch.equal(one, other) and one.dtype == torch.float32 for one, other in zip(ours, theirs, strict=True))


def test_the_branch_of_gpus() -> None:
    """Guards an operator that CPUs lack, `mm` with an output dtype: with fake tensors on a GPU, and with gradients on
    the device of tensors without numbers."""
    with FakeTensorMode():
        hidden, head = (torch.empty(rows, 64, dtype=torch.bfloat16, device="cuda") for rows in (7, 300))
        logits = head_logits(hidden, head)
    assert (logits.dtype, logits.shape, logits.device.type) == (torch.float32, (7, 300), "cuda")
    hidden, head = (x.detach().to("meta").requires_grad_() for x in product(torch.bfloat16))
    gradients = torch.autograd.grad(head_logits(hidden, head).sum(), (hidden, head))
    assert [(x.dtype, x.shape) for x in gradients] == [(x.dtype, x.shape) for x in (hidden, head)]
