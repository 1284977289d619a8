"""The last product of a model, hidden states times head, and what becomes of it: a token drawn, or its log-probability.

Logits are summed in float32 and stay so. Rounded to bfloat16, which has 8 bits and spaces numbers from 8 to 16 by 1/16,
they move a token's log-probability by 0.003 to 0.017 nats (`head_logits`); sampler and trainer round in different
places, so that this was most of the distance between them.

A token is drawn by the inverse of the cumulative distribution at a uniform number. The uniforms of a sample come from
its own Philox generator, so a sample depends on its seed and the model alone, never on what else is in the batch, and a
run on another device or with another batch size draws the same numbers. The log-probability is that of the whole legal
distribution at the sampling temperature: top-k truncation cuts what can be drawn, not what is reported, since the
trainer computes the same quantity without knowing about the cut. Nucleus (top-p) sampling is left out: nothing in the
paper uses it.

Training multiplies only rows of the head whose ids are legal, and only a chunk of tokens at a time. A chunk's logits
are thrown away after the forward pass and computed again in the backward pass, so that all logits never exist together:
at 8 completions of 1,024 codes they would be 1 GB over the 32,768 codes, and 6 GB over the whole vocabulary, several
times over with softmax and gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

HEAD_ROWS = 1024  # of the head that are widened at a time on a CPU: 16 MB at 4,096 channels
CHUNK_BYTES = 2**27


def uniform_numbers(seed: tuple[int, ...], count: int) -> np.ndarray:
    """`count` numbers in [0, 1), float64, a pure function of `seed` (non-negative integers)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).random(count)


def draw_dtype(device: torch.device) -> torch.dtype:
    """In what tokens are drawn on a device: float64, which Apple's GPUs lack; there float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def draws_on(device: torch.device, uniforms: np.ndarray) -> Tensor:
    """`uniforms`, numbers in [0, 1), as a tensor of `draw_dtype` on `device`; none of them becomes 1 by rounding."""
    dtype = draw_dtype(device)
    drawn = torch.from_numpy(uniforms).to(dtype)
    return drawn.clamp_max(1 - torch.finfo(dtype).eps / 2).to(device)


def head_logits(hidden: Tensor, head_V_D: Tensor) -> Tensor:
    """`hidden` (..., D) times the rows of a head (V, D): logits (..., V), with gradient.

    Of float32 and float64 it is torch's own product. bfloat16 and float16, which autocast makes of float32 as it does
    everywhere, are multiplied as they are, but sums are not rounded: the result is float32. Gradients come out in the
    dtypes of the arguments, from products in their dtype, as without this function.

    Error of a log-probability over 32,768 codes of 4,096 channels, bfloat16 weights, against float64: 4e-7 to 2e-6
    nats, where logits that are rounded to bfloat16 give 0.0025 (entropy 9.6), 0.012 (5.6) and 0.017 (1.7).
    On CUDA it costs what the rounded product does and saves the copy to float32. On a CPU a block of the head at a time
    is widened: 0.4 s instead of 0.1 s for 8 rows, 2.8 s instead of 0.8 s for 512 (one core with bfloat16 arithmetic).
    """
    kind = hidden.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        hidden, head_V_D = (x.to(torch.get_autocast_dtype(kind)) for x in (hidden, head_V_D))
    if hidden.dtype not in (torch.bfloat16, torch.float16):
        return F.linear(hidden, head_V_D)
    logits: Tensor = _WideProduct.apply(hidden.flatten(0, -2), head_V_D)
    return logits.unflatten(0, hidden.shape[:-1])


class _WideProduct(torch.autograd.Function):
    """(N, D) times (V, D) of half precision, in float32: torch's own operator has no gradient and no kernel on CPUs."""

    @staticmethod
    def forward(ctx: Any, hidden_N_D: Tensor, head_V_D: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_N_D, head_V_D)
        if hidden_N_D.device.type != "cpu":
            return torch.mm(hidden_N_D, head_V_D.t(), out_dtype=torch.float32)
        wide_N_D = hidden_N_D.float()
        logits_N_V = wide_N_D.new_empty(len(wide_N_D), len(head_V_D))
        block = wide_N_D.new_empty(min(HEAD_ROWS, len(head_V_D)), head_V_D.shape[1])
        for rows, logits in zip(head_V_D.split(HEAD_ROWS), logits_N_V.split(HEAD_ROWS, dim=1), strict=True):
            # With `out` autocast leaves the product alone.
            torch.mm(wide_N_D, block[: len(rows)].copy_(rows).t(), out=logits)
        return logits_N_V

    @staticmethod
    def backward(ctx: Any, grad_N_V: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden_N_D, head_V_D = ctx.saved_tensors
        grad_N_V = grad_N_V.to(hidden_N_D.dtype)
        of_hidden, of_head = ctx.needs_input_grad
        return grad_N_V @ head_V_D if of_hidden else None, grad_N_V.t() @ hidden_N_D if of_head else None


def choose(logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Draw one index per row.

    logits: (..., V) over the legal tokens, any float dtype. uniforms: (...) in [0, 1), of `draw_dtype`.
    temperature: 0 takes the most probable index and reports its log-probability at temperature 1.
    top_k: draw among the k most probable indices (and those tied with the k-th); None draws among all.

    Returns the index (...) int64 and its log-probability (...) before the top-k cut, in float32 (float64 if the
    logits are). Logits that are not finite give a log-probability that is not finite, never an index outside V.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = (logits / temperature if temperature > 0 else logits).log_softmax(-1)
    if temperature == 0:
        index = logprobs.argmax(-1, keepdim=True)
    else:
        weights = logprobs.to(uniforms.dtype).exp()
        if top_k is not None and top_k < logits.shape[-1]:
            least = logprobs.topk(top_k, dim=-1).values[..., -1:]
            weights = weights.where(logprobs >= least, 0.0)
        cumulative = weights.cumsum(-1)
        # u < 1 makes u * total < total in floats too, so there is a first sum above it, unless the sums are NaN.
        target = uniforms[..., None] * cumulative[..., -1:]
        index = torch.searchsorted(cumulative, target, right=True).clamp_max(logits.shape[-1] - 1)
    return index[..., 0], logprobs.gather(-1, index)[..., 0]


def chosen_logprobs(
    hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, temperature: float, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of `target_N` among the V rows of the head, and entropies (N,) without gradient, in nats.

    float32 whatever the precision of the model, float64 from a float64 model. chunk_bytes: bound on the logits of one
    chunk; what fits into one is neither cut nor computed again.
    """
    parts = _by_chunks(hidden_N_D, head_V_D, target_N, temperature, True, chunk_bytes)
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def target_logprobs(hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """The log-probabilities (N,) of `chosen_logprobs` at temperature 1, without a pass over all logits for entropy."""
    parts = _by_chunks(hidden_N_D, head_V_D, target_N, 1.0, False, chunk_bytes)
    return torch.cat([logprobs for logprobs, _ in parts])


def _by_chunks(
    hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, temperature: float, entropies: bool, chunk_bytes: int
) -> list[tuple[Tensor, Tensor]]:
    width = head_V_D.shape[0] * torch.promote_types(hidden_N_D.dtype, torch.float32).itemsize
    rows = max(1, chunk_bytes // width)
    if len(target_N) <= rows:
        return [_score(hidden_N_D, head_V_D, target_N, temperature, entropies)]
    return [
        checkpoint(
            _score, hidden, head_V_D, target, temperature, entropies, use_reentrant=False, preserve_rng_state=False
        )
        for hidden, target in zip(hidden_N_D.split(rows), target_N.split(rows), strict=True)
    ]


def _score(
    hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, temperature: float, entropies: bool
) -> tuple[Tensor, Tensor]:
    scored: tuple[Tensor, Tensor] = _Chosen.apply(head_logits(hidden_N_D, head_V_D), target_N, temperature, entropies)
    return scored


class _Chosen(torch.autograd.Function):
    """The log-softmax of logits (N, V) at one target a row, (N,), and its entropy, (N,), or nothing in its place.

    The gradient of log p_t is onehot(t) - p. It is written over the log-probabilities, which nobody needs any more:
    autograd's own way through a gather and a log-softmax fills two more tensors of (N, V).
    """

    @staticmethod
    def forward(
        ctx: Any, logits_N_V: Tensor, target_N: Tensor, temperature: float, entropies: bool
    ) -> tuple[Tensor, Tensor]:
        if temperature != 1:  # by far the most common; spares a pass over all logits
            logits_N_V = logits_N_V / temperature
        logprobs_N_V = logits_N_V.log_softmax(-1)
        ctx.save_for_backward(logprobs_N_V, target_N)
        ctx.temperature = temperature
        entropy_N = -logprobs_N_V.exp().mul_(logprobs_N_V).sum(-1) if entropies else logprobs_N_V.new_empty(0)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N_V.gather(-1, target_N.unsqueeze(1)).squeeze(1), entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logprobs_N_V, target_N = ctx.saved_tensors  # a second backward pass finds them overwritten: autograd raises
        grad_N = grad_N / ctx.temperature
        grad_N_V = logprobs_N_V.exp_().mul_(-grad_N.unsqueeze(1))
        return grad_N_V.scatter_add_(1, target_N.unsqueeze(1), grad_N.unsqueeze(1)), None, None, None
