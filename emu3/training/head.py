"""The last product of a model, hidden states times head, and what is wanted of it: one log-probability per token.

Only rows of the head whose ids are legal are multiplied, and only a chunk of tokens at a time. A chunk's logits are
thrown away after the forward pass and computed again in the backward pass, so that all logits never exist together:
at 8 answers of 1,024 codes they would be 1 GB over the 32,768 codes, and 6 GB over the whole vocabulary, several times
over with softmax and gradient. They are float32 sums, never rounded to a model's bfloat16 (`head_logits`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emu3.mllm.sampling import head_logits

CHUNK_BYTES = 2**27


def chosen_logprobs(
    hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, temperature: float, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of `target_N` among the V rows of the head, and entropies (N,) without gradient, in nats.

    float32 whatever the precision of the model, float64 from a float64 model. chunk_bytes: bound on the logits of one
    chunk; what fits into one is neither cut nor computed again.
    """
    width = head_V_D.shape[0] * torch.promote_types(hidden_N_D.dtype, torch.float32).itemsize
    rows = max(1, chunk_bytes // width)
    if len(target_N) <= rows:
        return _score(hidden_N_D, head_V_D, target_N, temperature)
    parts = [
        checkpoint(_score, hidden, head_V_D, target, temperature, use_reentrant=False, preserve_rng_state=False)
        for hidden, target in zip(hidden_N_D.split(rows), target_N.split(rows), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _score(hidden_N_D: Tensor, head_V_D: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits_N_V = head_logits(hidden_N_D, head_V_D)
    if temperature != 1:  # by far the most common; spares a pass over all logits, and another one backward
        logits_N_V = logits_N_V / temperature
    logprobs_N_V = logits_N_V.log_softmax(-1)
    with torch.no_grad():
        entropy_N = -(logprobs_N_V.exp() * logprobs_N_V).sum(-1)
    return logprobs_N_V.gather(-1, target_N.unsqueeze(1)).squeeze(1), entropy_N
