"""Encoding computes in float32 whatever the caller has allowed, and leaves the caller's settings as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from emu3.tokenizer import blocks
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ


@pytest.fixture
def loose_float32() -> Iterator[None]:
    """A caller that allows TF32 everywhere, as training scripts do."""
    before = precisions()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    for operation, value in zip(blocks._OPERATIONS, before, strict=True):
        operation.fp32_precision = value


def precisions() -> list[str]:
    return [operation.fp32_precision for operation in blocks._OPERATIONS]


@pytest.mark.usefixtures("loose_float32")
def test_encoding_is_never_in_tf32() -> None:
    """cuDNN's default alone moves codes on a GPU; without one, the flags during the pass are what can be seen."""
    config = StillVQConfig(32, (1,), 1, (), codebook_size=16, temporal_downsample_factor=1, patch_size=4)
    vq = StillVQ(config)
    seen: dict[str, list[str]] = {}
    vq.encoder.register_forward_hook(lambda *_: seen.update(encode=precisions()))
    vq.decoder.register_forward_hook(lambda *_: seen.update(decode=precisions()))
    outside = precisions()
    codec = ImageCodec(vq)
    codec.decode(codec.encode([Image.new("RGB", (8, 8))]))
    assert set(seen["encode"]) == {"ieee"}
    assert seen["decode"] == precisions() == outside and "tf32" in outside


@pytest.mark.usefixtures("loose_float32")
def test_the_settings_come_back_after_an_error() -> None:
    """A refused image must not slow down the rest of a run, nor leave flags that torch refuses to read."""
    outside = precisions()
    with pytest.raises(RuntimeError), blocks.plain_float32():
        assert torch.backends.cudnn.allow_tf32 is False and torch.get_float32_matmul_precision() == "highest"
        raise RuntimeError
    assert precisions() == outside
    assert torch.backends.cudnn.allow_tf32 is True and torch.get_float32_matmul_precision() == "high"
