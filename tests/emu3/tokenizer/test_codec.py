"""ImageCodec: batching is invisible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.codec import ImageCodec, to_pil, to_tensor
from emu3.tokenizer.model import StillVQ

CONFIG = StillVQConfig(
    base_channels=64,
    channel_multiplier=(1, 1),
    num_res_blocks=1,
    attn_resolutions=(),
    codebook_size=64,
    temporal_downsample_factor=1,
    patch_size=4,
)
SIZES = [(16, 24), (24, 16), (16, 24), (8, 8), (24, 16), (16, 24), (16, 24)]


@pytest.fixture
def vq() -> StillVQ:
    torch.manual_seed(0)
    vq = StillVQ(CONFIG).double()
    with torch.no_grad():
        latents = vq.latents(torch.rand(8, 3, 32, 32, dtype=torch.float64) * 2 - 1)
        deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
        vq.quantizer.codebook.mul_(deviation).add_(mean)
    return vq


def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


@pytest.mark.parametrize("batch_pixels", [1, 2 * 16 * 24, 2**19])
def test_equals_one_by_one_in_order(vq: StillVQ, batch_pixels: int) -> None:
    """Buckets that leak across sizes, lose the order or pad would show; fp64 leaves no ties."""
    codec = ImageCodec(vq, batch_pixels=batch_pixels)
    grids = codec.encode(images())
    assert len({grid.tobytes() for grid in grids}) == len(SIZES)
    for image, grid in zip(images(), grids, strict=True):
        assert grid.dtype == np.uint16
        assert np.array_equal(grid, vq.encode(to_tensor([image]).double())[0].numpy())
    for grid, decoded in zip(grids, codec.decode(grids), strict=True):
        assert decoded == to_pil(vq.decode(torch.from_numpy(grid.astype(np.int64))[None]))[0]


def test_batches_keep_the_budget(vq: StillVQ) -> None:
    """Activations grow with the pixels of a batch, not with the number of images."""
    seen: list[tuple[int, ...]] = []
    vq.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    ImageCodec(vq, batch_pixels=2 * 16 * 24).encode(images())
    assert sorted(seen) == [(1, 3, 8, 8), (2, 3, 16, 24), (2, 3, 24, 16), (2, 3, 24, 16)]


def test_nothing_to_do(vq: StillVQ) -> None:
    """A step in which every rollout was rejected still asks."""
    codec = ImageCodec(vq)
    assert codec.encode([]) == []
    assert codec.decode([]) == []


def test_codes_outside_the_codebook(vq: StillVQ) -> None:
    """On a GPU the look-up would end the process with a device assertion."""
    grids = [np.zeros((2, 2), np.uint16), np.full((2, 2), 64, np.uint16)]
    with pytest.raises(ValueError, match=r"grid 1 holds codes 64\.\.64"):
        ImageCodec(vq).decode(grids)


def test_encoding_stays_out_of_bf16(vq: StillVQ) -> None:
    """Autocast around the codec changes no code, and bf16 weights are refused rather than wrong."""
    codec = ImageCodec(vq.float())
    expected = codec.encode(images())
    with torch.autocast("cpu", torch.bfloat16):
        grids = codec.encode(images())
    assert all(np.array_equal(grid, other) for grid, other in zip(grids, expected, strict=True))
    with pytest.raises(ValueError, match="bf16"):
        ImageCodec(vq.bfloat16()).encode(images())


def test_decode_dtype_is_for_decoding_only(vq: StillVQ) -> None:
    """decode_dtype trades grey levels for speed; it must reach the decoder and leave the codes alone."""
    large = [image for image in images() if image.size != (8, 8)]
    plain, quick = ImageCodec(vq.float()), ImageCodec(vq.float(), decode_dtype=torch.bfloat16)
    grids = plain.encode(large)
    assert all(np.array_equal(grid, other) for grid, other in zip(grids, quick.encode(large), strict=True))
    one, other = (np.stack([np.asarray(p).reshape(-1) for p in c.decode(grids)]).astype(int) for c in (plain, quick))
    assert 0 < np.abs(one - other).mean() < 4
