"""The chunked head: the same numbers and gradients as the plain one, without ever holding all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emu3.mllm.head import chosen_logprobs, target_logprobs

TOKENS, HIDDEN, CODES = 41, 8, 13


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(CODES, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, head, torch.randint(CODES, (TOKENS,), generator=generator)


@pytest.mark.parametrize("rows", [1, 7, TOKENS - 1, TOKENS])
def test_chunks_change_nothing(rows: int) -> None:
    """Guards a chunk that is lost, scored twice, or scored with its neighbour's targets; to 1e-10 in float64."""
    hidden, head, target = inputs()
    expected = torch.distributions.Categorical(logits=hidden @ head.T / 0.7)
    logprobs, entropies = chosen_logprobs(hidden, head, target, 0.7, chunk_bytes=rows * CODES * 8)
    torch.testing.assert_close(logprobs, expected.log_prob(target), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(entropies, expected.entropy(), rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)
    ours = torch.autograd.grad((logprobs * weights).sum(), (hidden, head))
    theirs = torch.autograd.grad((expected.log_prob(target) * weights).sum(), (hidden, head))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_graph_holds_no_logits() -> None:
    """What the backward pass keeps must not grow with tokens times codes, or the chunks save nothing."""
    hidden, head, target = inputs()

    def largest_kept(chunk_bytes: int) -> int:
        sizes: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            chosen_logprobs(hidden, head, target, 1.0, chunk_bytes)
        return max(sizes)

    assert largest_kept(2 * CODES * 8) <= max(TOKENS, CODES) * HIDDEN
    assert largest_kept(TOKENS * CODES * 8) >= TOKENS * CODES


@pytest.mark.parametrize("rows", [7, TOKENS])
def test_a_second_backward_pass_is_right_or_refused(rows: int) -> None:
    """Guards gradients that are written over what they are made of; chunks are computed again each time."""
    hidden, head, target = inputs()
    total = target_logprobs(hidden, head, target, chunk_bytes=rows * CODES * 8).sum()
    first = torch.autograd.grad(total, (hidden, head), retain_graph=True)
    if rows == TOKENS:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(total, (hidden, head))
    else:
        torch.testing.assert_close(torch.autograd.grad(total, (hidden, head)), first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [7, TOKENS])
def test_half_precision_is_scored_in_float32(rows: int) -> None:
    """Logits and their log-softmax, of weights in bfloat16, against float64 of the same weights: 1e-6 nats are the
    rounding of float32, bfloat16's is 0.003 and more. Guards both the sums and the log-softmax over 32,768 codes."""
    hidden, head, target = (x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs())
    logprobs, entropies = chosen_logprobs(hidden, head, target, 0.7, chunk_bytes=rows * CODES * 4)
    assert logprobs.dtype == torch.float32
    expected = torch.distributions.Categorical(logits=hidden.double() @ head.double().T / 0.7)
    torch.testing.assert_close(logprobs.double(), expected.log_prob(target), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropies.double(), expected.entropy(), rtol=1e-6, atol=1e-6)
