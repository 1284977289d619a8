"""StillVQ beyond the published shape: saving, wrong input, the tiny form and its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emu3.tokenizer.blocks import Norm, Parts, StillVQConfig
from emu3.tokenizer.model import StillVQ

TINY = StillVQConfig(
    base_channels=16,
    channel_multiplier=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(1,),
    embed_dim=8,
    codebook_size=64,
    temporal_downsample_factor=1,
    patch_size=4,
    norm="position",
    unit_codes=True,
)


@pytest.fixture
def tiny() -> StillVQ:
    torch.manual_seed(0)
    return StillVQ(TINY)


def images(height: int = 24, width: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes_follow_the_factor(tiny: StillVQ) -> None:
    """Patch stem and levels both count; rows are rows."""
    assert TINY.factor == 8
    codes = tiny.encode(images())
    assert codes.dtype == torch.int64
    assert codes.shape == (2, 3, 2)
    assert tiny.decode(codes).shape == (2, 3, 24, 16)


@pytest.mark.parametrize(("height", "width"), [(23, 16), (24, 15), (0, 16), (4, 4)])
def test_other_sizes_are_refused(tiny: StillVQ, height: int, width: int) -> None:
    """Less than a cell, or half a patch, is no image to this network."""
    with pytest.raises(ValueError, match=f"{height}x{width}"):
        tiny.encode(images(height, width))


def test_rows_beyond_the_last_cell_are_seen_but_have_no_code(tiny: StillVQ) -> None:
    """The published tokenizer does so, and its codes are those to be met."""
    assert tiny.encode(images(28, 20)).shape == (2, 3, 2)
    assert not torch.equal(tiny.latents(images(28, 20)), tiny.latents(images(28, 20)[:, :, :24, :16]))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_half_a_tokenizer(tiny: StillVQ, tmp_path: Path, part: Parts) -> None:
    """Whoever encodes a million images holds no decoder; asked for what it lacks, it says so and how to get it."""
    tiny.save_pretrained(tmp_path / "vision")
    half = StillVQ.from_pretrained(tmp_path / "vision", parts=part)
    other = "decoder" if part == "encoder" else "encoder"
    assert {name.split(".")[0] for name in half.state_dict()} == {part, "quantizer"}
    codes = tiny.encode(images())
    if part == "encoder":
        assert torch.equal(half.encode(images()), codes)
    else:
        assert torch.equal(half.decode(codes), tiny.decode(codes))
    with pytest.raises(RuntimeError, match=f"no {other}: load it with parts='both' or '{other}'"):
        half.decode(codes) if part == "encoder" else half.encode(images())
    with pytest.raises(ValueError, match=f"only a whole .* its {part}"):
        half.save_pretrained(tmp_path / "half")
    assert not (tmp_path / "half").exists()
    with pytest.raises(ValueError, match="not 'middle'"):
        StillVQ(TINY, "middle")  # type: ignore[arg-type]


def test_gradients_reach_every_weight(tiny: StillVQ) -> None:
    """The trainer's path, latents to pixels, must not be cut by encode's and decode's no_grad."""
    (tiny.decode_latents(tiny.latents(images())) - images()).square().mean().backward()
    idle = [name for name, weight in tiny.named_parameters() if weight.grad is None]
    assert idle == []


def test_position_norm_keeps_cells_apart() -> None:
    """A group norm on a small grid moves the codes of all cells when one object changes."""
    x = images()[:, :1].repeat(1, 32, 1, 1) + torch.randn(1, 32, 1, 1)
    changed = x.clone()
    changed[:, :, 5, 7] += torch.randn(32)
    others = torch.ones(24, 16, dtype=torch.bool)
    others[5, 7] = False
    position, group = Norm(32, "position", None), Norm(32, "group", None)
    assert torch.equal(position(x, None)[..., others], position(changed, None)[..., others])
    assert not torch.equal(group(x, None)[..., others], group(changed, None)[..., others])


def test_round_trip_through_a_folder(tiny: StillVQ, tmp_path: Path) -> None:
    """Config and weights come back as they were, the codebook too, and other dtypes on request."""
    tiny.save_pretrained(tmp_path / "vision")
    loaded = StillVQ.from_pretrained(tmp_path / "vision")
    assert loaded.config == TINY
    codes = tiny.encode(images())
    assert torch.equal(loaded.encode(images()), codes)
    assert torch.equal(loaded.decode(codes), tiny.decode(codes))
    half = StillVQ.from_pretrained(tmp_path / "vision", dtype=torch.bfloat16)
    assert half.decode(codes).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "batch"},
        {"base_channels": 48},
        {"temporal_downsample_factor": 3},
        {"codebook_size": 65537},
        {"embed_dim": "4"},
        {"base_channels": -32},
    ],
)
def test_config_that_does_not_fit(change: dict[str, str | int]) -> None:
    """Refused when written, not when the first layer breaks or a code overflows 16 bits in a shard."""
    with pytest.raises(ValueError, match=str(next(iter(change.values())))):
        StillVQConfig(**change)


def test_published_size() -> None:
    """The default config is the published network: 270.7 million weights before folding, fewer after it."""
    with torch.device("meta"):
        published = StillVQ(StillVQConfig())
    assert sum(weight.numel() for weight in published.encoder.parameters()) == pytest.approx(109.5e6, rel=1e-3)
    assert sum(weight.numel() for weight in published.decoder.parameters()) == pytest.approx(161.1e6, rel=1e-3)
