"""One token from a row of logits, decided by one number that was drawn beforehand.

The token is the inverse of the cumulative distribution at a uniform number. The uniforms of a sample come from its
own Philox generator, so a sample depends on its seed and the model alone, never on what else is in the batch, and a
run on another device or with another batch size draws the same numbers.

The log-probability is that of the whole legal distribution at the sampling temperature: top-k truncation cuts what
can be drawn, not what is reported, since the trainer computes the same quantity without knowing about the cut.
Nucleus (top-p) sampling is left out: nothing in the paper uses it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniform_numbers(seed: tuple[int, ...], count: int) -> np.ndarray:
    """`count` numbers in [0, 1), float64, a pure function of `seed` (non-negative integers)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).random(count)


def choose(logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Draw one index per row.

    logits: (..., V) over the legal tokens, any float dtype. uniforms: (...) float64 in [0, 1).
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
        weights = logprobs.double().exp()
        if top_k is not None and top_k < logits.shape[-1]:
            least = logprobs.topk(top_k, dim=-1).values[..., -1:]
            weights = weights.where(logprobs >= least, 0.0)
        cumulative = weights.cumsum(-1)
        # u < 1 makes u * total < total in float64 too, so there is a first sum above it, unless the sums are NaN.
        target = uniforms[..., None] * cumulative[..., -1:]
        index = torch.searchsorted(cumulative, target, right=True).clamp_max(logits.shape[-1] - 1)
    return index[..., 0], logprobs.gather(-1, index)[..., 0]
