"""Shape of a vision tokenizer for still images.

The defaults are the published Emu3 vision tokenizer (270.7 million parameters, spatial factor 8). The tiny one of a
4x6 grid is the same class with five departures:
- `patch_size` 8 folds 8x8 pixels into channels before the first convolution, so no level works at full resolution;
- `kernel_size` 1 keeps every cell to itself: an edit then changes the codes of the cells that it changes, no others;
- `norm` "position" normalizes each cell over its channels. A group norm takes its statistics over the grid, and on
  24 cells one object moves the codes of all the others;
- `middle_attention` off, for the same reason;
- `unit_codes` keeps latents and codes on the unit sphere, which trains well with few codes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

NORM_GROUPS = 32
MAX_CODES = 2**16
POSITIVE = ("base_channels", "embed_dim", "codebook_size", "temporal_downsample_factor", "patch_size", "kernel_size")

Parts = Literal["both", "encoder", "decoder"]
"""Which half of a tokenizer is loaded: whoever only encodes or only decodes needs half of the weights."""


@dataclass(frozen=True)
class StillVQConfig:
    """Sizes of a `StillVQ`. Raises ValueError if they do not fit together.

    base_channels: channels of the first level; a multiple of 32 with norm "group".
    channel_multiplier: channels of each level in units of `base_channels`; every level but the last halves the grid.
    num_res_blocks: residual blocks of a level and of the latent (the decoder has one more per level).
    attn_resolutions: indices of the levels that have attention.
    embed_dim: width of the latents and of the codes. (The published format also has `latent_channels`; its decoder
        carries latents and codes through the same layers, so the two are one number.)
    codebook_size: number of codes, at most 65,536: codes are stored in 16 bits.
    temporal_downsample_factor: frames per code in the checkpoint that was folded, a power of two; 1 without one.
    patch_size: side in pixels of the squares that are folded into channels before the first convolution.
    kernel_size: side of the convolutions that keep the grid, odd: 3, or 1 for cells that do not see each other.
    norm: "group" (32 groups over the grid) or "position" (each cell over its channels).
    middle_attention: attention between the two middle blocks.
    unit_codes: latents and codes have length 1.
    """

    base_channels: int = 256
    channel_multiplier: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (3,)
    embed_dim: int = 4
    codebook_size: int = 32768
    temporal_downsample_factor: int = 4
    patch_size: int = 1
    kernel_size: int = 3
    norm: str = "group"
    middle_attention: bool = True
    unit_codes: bool = False

    def __post_init__(self) -> None:
        # JSON has lists only.
        object.__setattr__(self, "channel_multiplier", tuple(self.channel_multiplier))
        object.__setattr__(self, "attn_resolutions", tuple(self.attn_resolutions))
        for name in POSITIVE:
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}, not a whole number from 1 on")
        if self.norm not in ("group", "position"):
            raise ValueError(f"norm is 'group' or 'position', not {self.norm!r}")
        if self.norm == "group" and self.base_channels % NORM_GROUPS:
            raise ValueError(f"base_channels {self.base_channels} is not a multiple of {NORM_GROUPS} (norm 'group')")
        if self.codebook_size > MAX_CODES:
            raise ValueError(f"codebook_size {self.codebook_size} is above {MAX_CODES}: codes are stored in 16 bits")
        frames = self.temporal_downsample_factor
        if frames & (frames - 1):
            raise ValueError(f"temporal_downsample_factor {frames} is not a power of two")

    @property
    def factor(self) -> int:
        """Pixels per code along an axis."""
        return self.patch_size * 2 ** (len(self.channel_multiplier) - 1)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multiplier)

    @property
    def time_stages(self) -> int:
        """Temporal halvings of the checkpoint that was folded; each leaves one convolution and a SiLU."""
        return self.temporal_downsample_factor.bit_length() - 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises ValueError on a missing or unknown field."""
        fields = set(cls.__dataclass_fields__)
        if set(values) != fields:
            raise ValueError(f"missing {sorted(fields - set(values))}, unknown {sorted(set(values) - fields)}")
        return cls(**values)
