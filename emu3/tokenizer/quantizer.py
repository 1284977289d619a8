"""Nearest code of each latent.

Distances are |x|^2 + |c|^2 - 2 x.c as in the published code, in its order, so that ties fall the same way. They are
taken in fp32 whatever surrounds the call (autocast, TF32): under bf16 the published formula returns other codes almost
everywhere, without an error. Where a caller says nothing, cuDNN convolves float32 tensors in TF32, with 10 bits of
mantissa; `plain_float32` forbids it. Rows go through in chunks, because the (N, K) matrix of one batch would take
gigabytes; a chunk changes no code, and one that fits a processor's cache is also the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cuda, cudnn, mkldnn

CHUNK_BYTES = 8 * 2**20
# The recurrent one is set along, because torch's older flag refuses to be read while it differs from convolutions.
_OPERATIONS: tuple[Any, ...] = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)  # type: ignore[attr-defined]


@contextmanager
def plain_float32() -> Iterator[None]:
    """While it lasts, products and convolutions of float32 tensors are rounded to float32, on every device."""
    before = [operation.fp32_precision for operation in _OPERATIONS]
    try:
        for operation in _OPERATIONS:
            operation.fp32_precision = "ieee"
        yield
    finally:
        for operation, precision in zip(_OPERATIONS, before, strict=True):
            operation.fp32_precision = precision


def nearest_codes(latents: Tensor, codebook: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Index of the nearest row of `codebook` (K, D) for each row of `latents` (N, D): int64 (N,).

    Computed in fp32, or in fp64 if both are. `chunk_bytes` bounds one (rows, K) matrix of distances; there are two at a
    time, and nothing else grows with N but the result.
    """
    double = latents.dtype == codebook.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    nearest = torch.empty(len(latents), dtype=torch.int64, device=latents.device)
    with torch.autocast(latents.device.type, enabled=False), plain_float32():
        codebook = codebook.detach().to(dtype)
        code_norms = (codebook**2).sum(dim=1)
        rows = max(1, chunk_bytes // (codebook.shape[0] * dtype.itemsize))
        for part, found in zip(latents.detach().split(rows), nearest.split(rows), strict=True):
            chunk = part.to(dtype)
            distances = (chunk**2).sum(dim=1, keepdim=True) + code_norms
            found.copy_(distances.sub_(chunk @ codebook.T, alpha=2).argmin(dim=1))
    return nearest


class Quantizer(nn.Module):
    """The codebook (K, D), a buffer: it is folded from a checkpoint or moved by the trainer, never by a gradient.

    With `unit_codes` its rows are used at length 1.
    """

    def __init__(self, codebook_size: int, embed_dim: int, unit_codes: bool) -> None:
        super().__init__()
        self.unit_codes = unit_codes
        self.register_buffer("codebook", torch.randn(codebook_size, embed_dim))
        self.codebook: Tensor

    def codes(self) -> Tensor:
        """The codes as they are compared and decoded, (K, D)."""
        return F.normalize(self.codebook, dim=1) if self.unit_codes else self.codebook

    def forward(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) -> int64 (B, h, w) in [0, K)."""
        batch, _, height, width = latents.shape
        flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
        return nearest_codes(flat, self.codes()).view(batch, height, width)

    def lookup(self, codes: Tensor) -> Tensor:
        """Integers (B, h, w) -> (B, D, h, w)."""
        return F.embedding(codes, self.codes()).permute(0, 3, 1, 2)
