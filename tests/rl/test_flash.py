"""The flash kernels behind a shared prefix, against attention written out with all its scores."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.shared_prefix import Stretches, flash_backward, flash_forward

CPU = torch.device("cpu")
SIZE, SCALE = 8, 0.3
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SHAPES = {
    "equal": Stretches((4, 4, 4), (4, 4, 4), True, CPU),
    "mixed": Stretches((3, 1, 1, 6, 3), (3, 1, 1, 6, 3), True, CPU),
    "rectangles": Stretches((2, 7, 7, 1), (5, 3, 3, 4), False, CPU),
}


def inputs(stretches: Stretches, heads: int, key_heads: int) -> tuple[Tensor, ...]:
    """Queries, keys, values and a gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = sum(stretches.queries), sum(stretches.keys)
    shapes = [(queries, heads), (keys, key_heads), (keys, key_heads), (queries, heads)]
    return tuple(torch.randn(*shape, SIZE, generator=generator, dtype=torch.float64) for shape in shapes)


def written_out(query: Tensor, key: Tensor, value: Tensor, stretches: Stretches) -> tuple[Tensor, Tensor]:
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    scores_H_T_S = torch.einsum("thd,shd->hts", query, key) * SCALE
    seen_T_S = torch.zeros(scores_H_T_S.shape[1:], dtype=torch.bool)
    spans = (pairwise(accumulate(lengths, initial=0)) for lengths in (stretches.queries, stretches.keys))
    for (first, last), (start, end) in zip(*spans, strict=True):
        block = torch.ones(last - first, end - start, dtype=torch.bool)
        seen_T_S[first:last, start:end] = block.tril() if stretches.causal else block
    scores_H_T_S = scores_H_T_S.masked_fill(~seen_T_S, -torch.inf)
    return torch.einsum("hts,shd->thd", scores_H_T_S.softmax(-1), value), scores_H_T_S.logsumexp(-1).T


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_attention_written_out(shape: str, key_heads: int) -> None:
    """Guards where the runs of equal lengths begin and end, which head of keys belongs to which queries, the scale."""
    stretches = SHAPES[shape]
    query, key, value, grad = inputs(stretches, 4, key_heads)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    expected, expected_logsum = written_out(query, key, value, stretches)
    gradients = torch.autograd.grad(expected, leaves, grad)
    with torch.no_grad():
        out, logsum = flash_forward(query, key, value, stretches, SCALE)
        ours = flash_backward(grad, query, key, value, out, logsum, stretches, SCALE)
    torch.testing.assert_close((out, logsum), (expected, expected_logsum), **EXACT)
    torch.testing.assert_close(ours, gradients, **EXACT)


def test_neighbours_of_equal_lengths_go_in_one_call() -> None:
    """Guards the speed at small sizes: a call for each of 32 rollouts costs more than what it computes."""
    assert SHAPES["equal"].runs == [(0, 0, 3, 4, 4)]
    assert [number for _, _, number, _, _ in SHAPES["mixed"].runs] == [1, 2, 1, 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_kernels_get_what_they_take(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no GPU here: torch's own description of its CUDA kernels accepts the calls and gives these shapes.
    Guards the order of the arguments and the layout of the logsums, which differs from the CPU kernels'."""
    meta = torch.device("meta")
    stretches = Stretches(SHAPES[shape].queries, SHAPES[shape].keys, SHAPES[shape].causal, meta)
    calls: list[tuple[Any, ...]] = []
    for name in ("_flash_attention_forward", "_flash_attention_backward"):
        kernel = getattr(torch.ops.aten, name)

        def noted(*args: Any, kernel: Any = kernel, **kwargs: Any) -> Any:
            calls.append(args)
            return kernel(*args, **kwargs)

        monkeypatch.setattr(torch.ops.aten, name, noted)
    query, key, value, grad = (x.to(meta, torch.bfloat16) for x in inputs(stretches, 4, 2))
    out, logsum = flash_forward(query, key, value, stretches, SCALE)
    gradients = flash_backward(grad, query, key, value, out, logsum, stretches, SCALE)
    assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
    assert (logsum.shape, logsum.dtype) == (query.shape[:2], torch.float32)
    assert [x.shape for x in gradients] == [x.shape for x in (query, key, value)]
    (_, _, _, starts, key_starts, longest, longest_key, *_), (_, _, _, _, _, given, *_) = calls
    assert starts.shape == key_starts.shape == (len(stretches.queries) + 1,) and starts.dtype == torch.int32
    assert (longest, longest_key) == (max(stretches.queries), max(stretches.keys))
    assert given.shape == (4, sum(stretches.queries)) and given.is_contiguous()
