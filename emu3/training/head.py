"""The last product of a model, hidden states times head, and what training needs of it: one log-probability per token.

Only rows of the head whose ids are legal are multiplied, and only a chunk of tokens at a time. A chunk's logits are
thrown away after the forward pass and computed again in the backward pass, so that all logits never exist together:
at 8 completions of 1,024 codes they would be 1 GB over the 32,768 codes, and 6 GB over the whole vocabulary, several
times over with softmax and gradient. They are float32 sums, never rounded to a model's bfloat16 (`head_logits`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emu3.mllm.sampling import head_logits

CHUNK_BYTES = 2**27

T = TypeVar("T")


def chosen_logprobs(
    hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, temperature: float, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of `target_N` among the V rows of the head, and entropies (N,) without gradient, in nats.

    float32 whatever the precision of the model, float64 from a float64 model. chunk_bytes: bound on the logits of one
    chunk; what fits into one is neither cut nor computed again.
    """
    parts = _by_chunks(_score, hidden_N_D, head_V_D, target_N, temperature, chunk_bytes)
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def target_logprobs(hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """The log-probabilities (N,) of `chosen_logprobs` at temperature 1, without a pass over all logits for entropy."""
    return torch.cat(_by_chunks(_chosen, hidden_N_D, head_V_D, target_N, 1.0, chunk_bytes))


def _by_chunks(
    score: Callable[[Tensor, Tensor, Tensor, float], T],
    hidden_N_D: Tensor,
    head_V_D: Tensor,
    target_N: Tensor,
    temperature: float,
    chunk_bytes: int,
) -> list[T]:
    width = head_V_D.shape[0] * torch.promote_types(hidden_N_D.dtype, torch.float32).itemsize
    rows = max(1, chunk_bytes // width)
    if len(target_N) <= rows:
        return [score(hidden_N_D, head_V_D, target_N, temperature)]
    return [
        checkpoint(score, hidden, head_V_D, target, temperature, use_reentrant=False, preserve_rng_state=False)
        for hidden, target in zip(hidden_N_D.split(rows), target_N.split(rows), strict=True)
    ]


def _score(hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs_N_V = _logprobs(hidden_N_D, head_V_D, temperature)
    with torch.no_grad():
        entropy_N = -(logprobs_N_V.exp() * logprobs_N_V).sum(-1)
    return logprobs_N_V.gather(-1, target_N.unsqueeze(1)).squeeze(1), entropy_N


def _chosen(hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, temperature: float) -> Tensor:
    return _logprobs(hidden_N_D, head_V_D, temperature).gather(-1, target_N.unsqueeze(1)).squeeze(1)


def _logprobs(hidden_N_D: Tensor, head_V_D: Tensor, temperature: float) -> Tensor:
    logits_N_V = head_logits(hidden_N_D, head_V_D)
    if temperature != 1:  # by far the most common; spares a pass over all logits, and another one backward
        logits_N_V = logits_N_V / temperature
    return logits_N_V.log_softmax(-1)
