"""Attention of one stretch of queries to one stretch of keys, for many stretches at once, by torch's flash kernels.

The kernels are called below torch's public function because of one number: each query's logarithm of its summed
exponentials ("logsum"). Results over disjoint keys can be merged by it. And a backward kernel computes probabilities
as exp(score - logsum), so handed the logsum and the result of a softmax over more keys than it sees, it returns the
exact gradients of that softmax for the queries and keys that it does see (as in ring attention, arXiv:2310.01889).

A CPU kernel takes a batch of equal lengths, so neighbours of equal lengths go in one call; the CUDA kernel takes any
lengths in one call. Both take fewer key heads than query heads. No mask, no dropout; on CUDA no float32 and float64.

Axes on names: T tokens of queries, S of keys, H heads of queries, K of keys, D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class Stretches:
    """The i-th of `queries` neighbouring tokens see the i-th of `keys` neighbouring tokens; lengths, all positive.

    causal: the n-th query of a stretch sees the first n keys only, and both lengths are equal.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    causal: bool
    device: torch.device

    @cached_property
    def runs(self) -> list[tuple[int, int, int, int, int]]:
        """Neighbours of equal lengths: first query, first key, number, length of queries, length of keys."""
        runs = []
        query = key = 0
        for (queries, keys), equal in groupby(zip(self.queries, self.keys, strict=True)):
            number = len(list(equal))
            runs.append((query, key, number, queries, keys))
            query, key = query + number * queries, key + number * keys
        return runs

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Where the stretches of queries and of keys begin, and where the last one ends: int32, on the device."""
        queries, keys = (
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)
            for lengths in (self.queries, self.keys)
        )
        return queries, keys


def available(query: Tensor) -> bool:
    """Whether there is a kernel for the device, dtype and head size of `query`."""
    kind = query.device.type
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0
    return kind == "cpu" or (kind == "cuda" and fits)


def forward(
    q_T_H_D: Tensor, k_S_K_D: Tensor, v_S_K_D: Tensor, stretches: Stretches, scale: float
) -> tuple[Tensor, Tensor]:
    """Results (T, H, D) and logsums (T, H), these in float32, or float64 from float64."""
    if q_T_H_D.device.type == "cpu":
        # A call for each run of equal lengths, as (number, heads, length, head size).
        parts = [
            aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, stretches.causal, scale=scale)
            for query, key, value in _batches(stretches, (q_T_H_D,), (k_S_K_D, v_S_K_D))
        ]
        out, logsum = zip(*parts, strict=True)
        return _flat(out), _flat(logsum)
    # One call for all stretches, told apart by where they begin.
    sizes = *stretches.bounds, max(stretches.queries), max(stretches.keys)
    out_T_H_D, logsum_H_T, *_ = aten._flash_attention_forward(
        q_T_H_D, k_S_K_D, v_S_K_D, *sizes, 0.0, stretches.causal, False, scale=scale
    )
    return out_T_H_D, logsum_H_T.T


def backward(
    grad_T_H_D: Tensor,
    q_T_H_D: Tensor,
    k_S_K_D: Tensor,
    v_S_K_D: Tensor,
    out_T_H_D: Tensor,
    logsum_T_H: Tensor,
    stretches: Stretches,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, from the gradient of the result.

    out_T_H_D, logsum_T_H: of the softmax over all keys, those of other calls included.
    """
    if q_T_H_D.device.type == "cpu":
        of_queries = (q_T_H_D, grad_T_H_D, out_T_H_D, logsum_T_H)
        parts = [
            aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, query, key, value, out, logsum, 0.0, stretches.causal, scale=scale
            )
            for query, grad, out, logsum, key, value in _batches(stretches, of_queries, (k_S_K_D, v_S_K_D))
        ]
        queries, keys, values = zip(*parts, strict=True)
        return _flat(queries), _flat(keys), _flat(values)
    logsum_H_T = logsum_T_H.T.contiguous()
    sizes = *stretches.bounds, max(stretches.queries), max(stretches.keys)
    random = q_T_H_D.new_zeros(2, dtype=torch.uint64), q_T_H_D.new_empty(0)  # a dropout's, not read without one
    given = q_T_H_D, k_S_K_D, v_S_K_D, out_T_H_D, logsum_H_T, *sizes, 0.0, stretches.causal, *random
    return aten._flash_attention_backward(grad_T_H_D, *given, scale=scale)


def _batches(
    stretches: Stretches, of_queries: Sequence[Tensor], of_keys: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """For each run, views of the tensors as (number, heads, length, ...)."""
    for query, key, number, queries, keys in stretches.runs:
        yield (
            *(x[query : query + number * queries].unflatten(0, (number, queries)).transpose(1, 2) for x in of_queries),
            *(x[key : key + number * keys].unflatten(0, (number, keys)).transpose(1, 2) for x in of_keys),
        )


def _flat(batches: Sequence[Tensor]) -> Tensor:
    parts = [batch.transpose(1, 2).flatten(0, 1) for batch in batches]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
