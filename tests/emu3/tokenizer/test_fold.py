"""The folded tokenizer is the published one, not nearly it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from temporal_vq import random_images, random_temporal_vq, temporal_codes, temporal_latents
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from emu3.errors import UserError
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.fold import fold
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import still_config


@pytest.fixture(scope="module")
def temporal() -> Emu3VQVAE:
    return random_temporal_vq()


@pytest.fixture(scope="module")
def still(temporal: Emu3VQVAE) -> StillVQ:
    return StillVQ.from_transformers(temporal)


def assert_equal(temporal: Emu3VQVAE, still: StillVQ, batch: int, height: int, width: int) -> None:
    images = random_images(batch, height, width, seed=height + width + batch)
    codes = temporal_codes(temporal, images)
    with torch.no_grad():
        expected_latents, expected_pixels = temporal_latents(temporal, images), temporal.decode(codes)
        latents = still.latents(images)
    torch.testing.assert_close(latents, expected_latents, rtol=0, atol=1e-12)
    assert torch.equal(still.encode(images), codes)
    torch.testing.assert_close(still.decode(codes), expected_pixels, rtol=0, atol=1e-10)
    # Flat networks would be equal without a meaning.
    assert expected_pixels.std() > 0.1
    assert expected_latents.std() > 0.1
    assert len(codes.unique()) > 0.2 * codes.numel()


@pytest.mark.parametrize(
    ("batch", "height", "width"),
    [(1, 32, 32), (3, 16, 40), (2, 48, 24), (1, 8, 8), (1, 27, 37), (2, 22, 24), (1, 24, 15), (1, 31, 9)],
)
def test_equals_transformers(temporal: Emu3VQVAE, still: StillVQ, batch: int, height: int, width: int) -> None:
    """A wrong tap, a lost affine, or codes that skip the latent layers show here; batches, oblong grids and sides that
    are no multiples of 8 do too."""
    assert_equal(temporal, still, batch, height, width)


@pytest.mark.parametrize(
    "sizes",
    [
        {"temporal_downsample_factor": 1, "num_res_blocks": 1},
        {"temporal_downsample_factor": 2, "num_res_blocks": 1},
        {"temporal_downsample_factor": 8, "num_res_blocks": 1},
        {"channel_multiplier": (2, 2), "attn_resolutions": (0, 1), "num_res_blocks": 1, "hidden_size": 64},
        {"channel_multiplier": (1,), "attn_resolutions": (), "embed_dim": 6, "latent_channels": 6, "hidden_size": 32},
    ],
    ids=["1 frame", "2 frames", "8 frames", "attention at both levels", "one level"],
)
def test_equals_transformers_at_other_shapes(sizes: dict[str, Any]) -> None:
    """A fold that knows only the published shape (four frames, four levels, attention at the last) fails here."""
    temporal = random_temporal_vq(**sizes)
    assert_equal(temporal, StillVQ.from_transformers(temporal), 2, 16, 24)


def earlier_taps(temporal: Emu3VQVAE) -> dict[str, Tensor]:
    """The taps that no still reaches: all but the last of every causal convolution of kernel 3, and of the last
    temporal halving (kernel 4) the first two."""
    taps = {}
    for name, tensor in temporal.state_dict().items():
        if tensor.dim() == 5:
            taps[name] = tensor[:, :, :-1]
    del taps["encoder.time_conv.0.conv.conv.weight"]
    taps["encoder.time_conv.1.conv.conv.weight"] = taps["encoder.time_conv.1.conv.conv.weight"][:, :, :2]
    return taps


def test_taps_that_see_padding_do_not_matter() -> None:
    """Noise of 1000 in every tap that a still does not reach changes neither the plain path nor the fold, exactly."""
    temporal = random_temporal_vq()
    images = random_images(1, 24, 16, seed=3)
    latents, codes = temporal_latents(temporal, images), temporal_codes(temporal, images)
    with torch.no_grad():
        pixels = temporal.decode(codes)
    folded = StillVQ.from_transformers(temporal).state_dict()
    taps = earlier_taps(temporal)
    assert len(taps) == 2 + 2 * 4 + 2 + 1
    for tap in taps.values():
        tap.add_(1000 * torch.randn_like(tap))
    assert torch.equal(temporal_latents(temporal, images), latents)
    with torch.no_grad():
        assert torch.equal(temporal.decode(codes), pixels)
    for name, tensor in StillVQ.from_transformers(temporal).state_dict().items():
        assert torch.equal(tensor, folded[name]), name


def test_every_other_tap_matters() -> None:
    """The counterpart: a fold that takes the wrong tap, or too few of the first halving, would not notice a change.

    The plain path says what the change has to be.
    """
    temporal = random_temporal_vq(channel_multiplier=(1,), attn_resolutions=(), num_res_blocks=1, hidden_size=32)
    images = random_images(1, 6, 5, seed=3)
    codes = temporal_codes(temporal, images)
    others = {"encoder.time_conv.0.conv.conv.weight": range(4), "encoder.time_conv.1.conv.conv.weight": (2, 3)}
    for name, tensor in temporal.state_dict().items():
        if tensor.dim() != 5:
            continue
        for tap in others.get(name, (-1,)):
            latents, pixels = temporal_latents(temporal, images), temporal.decode(codes)
            tensor[:, :, tap] += 0.1
            changed = StillVQ.from_transformers(temporal)
            after_latents, after_pixels = temporal_latents(temporal, images), temporal.decode(codes)
            moved = (after_latents - latents).abs().max() + (after_pixels - pixels).abs().max()
            assert moved > 1e-4, (name, tap)
            torch.testing.assert_close(changed.latents(images), after_latents, rtol=0, atol=1e-12)
            torch.testing.assert_close(changed.decode(codes), after_pixels, rtol=0, atol=1e-10)


def test_a_quarter_of_the_work() -> None:
    """The reason to fold, at the published size and 256x256 pixels: four equal frames are neither encoded nor decoded
    any more, and the decoder's norms and doublings run where their input is."""
    with torch.device("meta"):
        temporal, still = Emu3VQVAE(Emu3VQVAEConfig()), StillVQ(StillVQConfig())
        images, codes = torch.empty(1, 3, 256, 256), torch.empty(1, 32, 32, dtype=torch.int64)

    def operations(work: Callable[[], object]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    encode = operations(lambda: temporal_latents(temporal, images)) / operations(lambda: still.latents(images))
    decode = operations(lambda: temporal.decode(codes)) / operations(lambda: still.decode(codes))
    assert encode > 3.9
    assert decode > 4.5


def test_fold_rounds_once(temporal: Emu3VQVAE) -> None:
    """fp32 weights are the fp64 fold rounded, not a fold of rounded products."""
    config = still_config(temporal.config.to_dict())
    state = temporal.state_dict()
    double, single = fold(state, config, torch.float64), fold(state, config)
    for name, tensor in double.items():
        assert single[name].dtype == torch.float32
        assert torch.equal(single[name], tensor.float()), name


def test_missing_and_unknown_weights_are_named(temporal: Emu3VQVAE) -> None:
    """A checkpoint of another layout must not load in part."""
    config, state = still_config(temporal.config.to_dict()), dict(temporal.state_dict())
    with pytest.raises(UserError, match=r"unknown.*'decoder\.more\.weight'"):
        fold({**state, "decoder.more.weight": torch.zeros(1)}, config)
    del state["decoder.conv_in.bias"]
    with pytest.raises(UserError, match=r"lack 'decoder\.conv_in\.bias'"):
        fold(state, config)


@pytest.mark.parametrize("change", [{"double_latent": True}, {"num_attention_heads": 2}, {"latent_channels": 8}])
def test_other_networks_are_refused(change: dict[str, Any]) -> None:
    """These would fold into weights of plausible shapes and wrong images."""
    with pytest.raises(UserError, match=next(iter(change))):
        still_config(Emu3VQVAEConfig(**change).to_dict())
