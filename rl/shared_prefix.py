"""Prompts and their completions in one packed row, each prompt once: a model's pass over groups that share a prefix.

The row holds U prefixes, then B branches, in the order of their prefixes, without padding. All that works token by
token (projections, MLP, norms) sees exactly the tokens there are. Attention is two calls: every prefix and every
branch to itself, causal; all branches of a prefix to the prefix, without mask. The second is merged into the first by
the logsums, so keys and values are neither copied nor repeated, and gradients flow to the prefix from
all its branches.

    o = (1 - w) o1 + w o2,    w = sigmoid(logsum2 - logsum1),    logsum = log(exp(logsum1) + exp(logsum2))

The model is transformers' own: this is an attention function named `shared_prefix`, for
`model.set_attn_implementation`, which a call without `shared` takes as it would "sdpa". The structure travels as an
argument of the call, not as a state of the model, so it is there when gradient checkpointing runs a layer again.
Under any other attention that takes a 4-D mask the same pass goes with a T x T mask: exact as well, but quadratic.

torch's flash kernels are called below its public function because of one number: each query's logarithm of its summed
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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Emu3ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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


def flash_available(query: Tensor) -> bool:
    """Whether there is a kernel for the device, dtype and head size of `query`."""
    kind = query.device.type
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0
    return kind == "cpu" or (kind == "cuda" and fits)


def flash_forward(
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


def flash_backward(
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


ATTENTION = "shared_prefix"


@dataclass(frozen=True)
class SharedPrefix:
    """Lengths in a packed row of T tokens: of the U prefixes, and of the branches of each; all positive.

    Neighbours of equal length go through one call of a CPU kernel: sort them.
    """

    prefixes: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    device: torch.device

    @property
    def lengths(self) -> list[int]:
        """Of the U prefixes and B branches, in the order of the row."""
        return [*self.prefixes, *(length for branches in self.branches for length in branches)]

    @cached_property
    def owners(self) -> list[int]:
        """Index of the prefix for each of the U prefixes and B branches."""
        count = len(self.prefixes)
        return [*range(count), *(owner for owner in range(count) for _ in self.branches[owner])]

    @cached_property
    def own(self) -> Stretches:
        """Each prefix and each branch to itself."""
        return Stretches(tuple(self.lengths), tuple(self.lengths), causal=True, device=self.device)

    @cached_property
    def cross(self) -> Stretches:
        """The branches of each prefix to the prefix."""
        return Stretches(tuple(map(sum, self.branches)), self.prefixes, causal=False, device=self.device)

    @cached_property
    def position_T(self) -> Tensor:
        """Position of each token in its own sequence."""
        count = len(self.prefixes)
        starts = [0] * count + [self.prefixes[owner] for owner in self.owners[count:]]
        spans = [torch.arange(start, start + length) for start, length in zip(starts, self.lengths, strict=True)]
        return torch.cat(spans).to(self.device)

    @cached_property
    def seen_T_T(self) -> Tensor:
        """Whether a token (row) sees another (column): what the two calls amount to, for other attention functions."""
        lengths = torch.tensor(self.lengths)
        segment_T = torch.arange(len(lengths)).repeat_interleave(lengths)
        owner_T = torch.tensor(self.owners).repeat_interleave(lengths)
        same = segment_T[:, None] == segment_T
        shared = (owner_T[:, None] == owner_T) & (segment_T < len(self.prefixes))
        return (same | shared).tril().to(self.device)


def final_states(model: Emu3ForCausalLM, ids_T: Tensor, shared: SharedPrefix) -> Tensor:
    """The trunk's output (T, D) at each token of the packed row `ids_T`."""
    if model.config._attn_implementation == ATTENTION:
        extra: dict[str, Any] = {"shared": shared, "attention_mask": torch.ones_like(ids_T)[None]}  # no padding
    else:
        blocked = torch.finfo(model.dtype).min
        mask_T_T = torch.zeros_like(shared.seen_T_T, dtype=model.dtype).masked_fill_(~shared.seen_T_T, blocked)
        extra = {"attention_mask": mask_T_T[None, None]}
    states = model.model(input_ids=ids_T[None], position_ids=shared.position_T[None], use_cache=False, **extra)
    return states.last_hidden_state[0]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function: query (1, H, T, D), key and value (1, K, T, D) to (1, T, H, D)."""
    if shared is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise ValueError(f"shared prefixes are computed without dropout, got {dropout}")
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not flash_available(query):
        out = F.scaled_dot_product_attention(query, key, value, shared.seen_T_T, scale=scale, enable_gqa=True)
        return out.transpose(1, 2), None
    packed = (x[0].transpose(0, 1) for x in (query, key, value))
    return _Attention.apply(*packed, shared, scale)[None], None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_T_H_D: Tensor, k_T_K_D: Tensor, v_T_K_D: Tensor, shared: SharedPrefix, scale: float
    ) -> Tensor:
        # 1. Every prefix and every branch attends to itself.
        out_T_H_D, logsum_T_H = flash_forward(q_T_H_D, k_T_K_D, v_T_K_D, shared.own, scale)
        # 2. The branches, which begin at `cut`, attend to their prefixes.
        cut = sum(shared.prefixes)
        cross, cross_logsum = flash_forward(q_T_H_D[cut:], k_T_K_D[:cut], v_T_K_D[:cut], shared.cross, scale)
        # 3. Merge 2 into 1, in place: each result counts by its share of the summed exponentials.
        weight = (cross_logsum - logsum_T_H[cut:]).sigmoid()[..., None]
        own = out_T_H_D[cut:]
        own.copy_(torch.lerp(own.to(weight.dtype), cross.to(weight.dtype), weight))
        logsum_T_H[cut:].copy_(torch.logaddexp(logsum_T_H[cut:], cross_logsum))
        ctx.save_for_backward(q_T_H_D, k_T_K_D, v_T_K_D, out_T_H_D, logsum_T_H)
        ctx.shared, ctx.scale = shared, scale
        return out_T_H_D

    @staticmethod
    def backward(ctx: Any, grad_T_H_D: Tensor) -> tuple[Tensor | None, ...]:
        q_T_H_D, k_T_K_D, v_T_K_D, out_T_H_D, logsum_T_H = ctx.saved_tensors
        shared, scale = ctx.shared, ctx.scale
        cut = sum(shared.prefixes)
        # `out` and `logsum` are those of the merged softmax, so each call gives the exact gradients of what it sees:
        # 1. of every prefix and branch to itself,
        queries, keys, values = flash_backward(
            grad_T_H_D, q_T_H_D, k_T_K_D, v_T_K_D, out_T_H_D, logsum_T_H, shared.own, scale
        )
        # 2. of the branches to their prefixes; a prefix collects the gradients of all its branches.
        cross_queries, cross_keys, cross_values = flash_backward(
            grad_T_H_D[cut:],
            q_T_H_D[cut:],
            k_T_K_D[:cut],
            v_T_K_D[:cut],
            out_T_H_D[cut:],
            logsum_T_H[cut:],
            shared.cross,
            scale,
        )
        queries[cut:] += cross_queries
        keys[:cut] += cross_keys
        values[:cut] += cross_values
        return queries, keys, values, None, None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
