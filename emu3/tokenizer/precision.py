"""float32 that is float32.

Where a caller says nothing, cuDNN convolves float32 tensors in TF32 (10 bits of mantissa); a caller may ask for TF32
or bf16 in matrix products too. Both move latents across the border between two codes without an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.backends import cuda, cudnn, mkldnn

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
