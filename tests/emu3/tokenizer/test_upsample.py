"""The doubling convolution at half resolution is the one at full resolution."""

from __future__ import annotations

import pytest
import torch
from temporal_vq import random_temporal_vq
from torch.utils.flop_counter import FlopCounterMode

from emu3.tokenizer.blocks import Upsample
from emu3.tokenizer.model import StillVQ


def doubling(dtype: torch.dtype = torch.float64) -> tuple[Upsample, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layer = Upsample(6).to(dtype)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return layer, torch.randn(2, 6, 5, 3, generator=generator).to(dtype)


def test_same_pixels_and_gradients() -> None:
    """A kernel at the wrong quarter, a mirrored one, or a lost border changes pixels of this oblong map."""
    layer, x = doubling()
    seen = []
    for layer.at_half_resolution in (False, True):
        x.requires_grad_().grad = None
        layer.zero_grad()
        pixels = layer(x)
        assert pixels.is_contiguous(memory_format=torch.channels_last) or not layer.at_half_resolution
        (pixels**2).sum().backward()
        seen.append((pixels.detach(), x.grad, layer.conv.weight.grad, layer.conv.bias.grad))
    for plain, quick in zip(*seen, strict=True):
        torch.testing.assert_close(quick, plain, rtol=0, atol=1e-10)


def test_four_products_instead_of_nine() -> None:
    """The reason for it; the border adds a little on a small map."""
    layer, x = doubling()
    counts = []
    for layer.at_half_resolution in (False, True):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(4 / 9)


def test_under_autocast() -> None:
    """Decoding may run in bf16: sums of taps are taken before they are rounded, and the result has its dtype."""
    layer, x = doubling(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        quick = layer(x)
    assert quick.dtype == torch.bfloat16
    torch.testing.assert_close(quick.float(), layer(x), rtol=0, atol=0.15)


def test_the_decoder_can_be_told() -> None:
    """Both ways through a whole decoder in float32, where 1e-4 is a hundredth of a grey level; the codes' own error
    is as large."""
    still = StillVQ.from_transformers(random_temporal_vq()).float()
    codes = torch.randint(512, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    quick = still.decode(codes)
    plain = still.upsample_at_half_resolution(False).decode(codes)
    assert not torch.equal(quick, plain)
    torch.testing.assert_close(quick, plain, rtol=0, atol=1e-4)
    assert torch.equal(still.upsample_at_half_resolution(True).decode(codes), quick)
