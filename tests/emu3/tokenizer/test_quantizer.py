"""The quantizer gives the nearest code whatever surrounds it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emu3.tokenizer.blocks import CHUNK_BYTES, Quantizer, nearest_codes


def latents_and_codebook(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    codebook = 0.2 + 0.05 * torch.randn(300, 4, generator=generator, dtype=dtype)
    return 0.2 + 0.05 * torch.randn(101, 4, generator=generator, dtype=dtype), codebook


def test_nearest_by_brute_force() -> None:
    """Guards the sign and the operands of the distance."""
    latents, codebook = latents_and_codebook(torch.float64)
    expected = [min(range(300), key=lambda code: float(((x - codebook[code]) ** 2).sum())) for x in latents]
    assert nearest_codes(latents, codebook).tolist() == expected


def test_chunks_change_no_code() -> None:
    """The memory bound must not be part of the tokenizer."""
    latents, codebook = latents_and_codebook(torch.float32)
    whole = nearest_codes(latents, codebook)
    for rows in (1, 7, 100):
        assert torch.equal(nearest_codes(latents, codebook, chunk_bytes=rows * 300 * 4), whole)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that exist at once among those made inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in args if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known | given:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return result

    def _freed(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.live -= size


@pytest.mark.parametrize(("codes", "rows"), [(32768, 128), (32768, 1024), (64, 2**20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_the_batch(dtype: torch.dtype, codes: int, rows: int) -> None:
    """The published formula takes 24 GB for 64 images. Temporaries count, and those of a conversion too; only the
    result, 8 bytes a row, may grow. 32,768 codes are the published ones."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(codes, 4, generator=generator).to(dtype)
    latents = torch.randn(rows, 4, generator=generator).to(dtype)
    with LiveBytes() as memory:
        nearest_codes(latents, codebook)
    assert CHUNK_BYTES <= memory.peak - 8 * rows < 24 * 2**20


def test_bf16_surroundings_change_no_code() -> None:
    """Under autocast the published formula runs its product in bf16 and returns other codes without an error."""
    latents, codebook = latents_and_codebook(torch.float32)
    expected = nearest_codes(latents, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(latents, codebook), expected)
        careless = ((latents**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * latents @ codebook.T).argmin(1)
    assert not torch.equal(careless, expected)
    rounded = latents.bfloat16()
    assert torch.equal(nearest_codes(rounded, codebook), nearest_codes(rounded.float(), codebook))


def test_lookup_inverts_the_search() -> None:
    """Guards the axes: a code's own vector is nearest to itself, at its own cell of an oblong grid."""
    quantizer = Quantizer(300, 4, unit_codes=False)
    codes = torch.arange(2 * 3 * 5).view(2, 3, 5)
    assert torch.equal(quantizer(quantizer.lookup(codes)), codes)


def test_unit_codes_have_length_one() -> None:
    """Moving means shrink codes; only their direction may count."""
    quantizer = Quantizer(300, 4, unit_codes=True)
    before = quantizer.lookup(torch.arange(300).view(1, 15, 20))
    quantizer.codebook.mul_(torch.rand(300, 1) + 0.1)
    after = quantizer.lookup(torch.arange(300).view(1, 15, 20))
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(1, 15, 20))
