"""Shape and layers of the still tokenizer: those of MoVQGAN (Zheng et al. 2022) as Emu3 has them, at one frame.

The shape's defaults are the published Emu3 vision tokenizer (270.7 million parameters, spatial factor 8). The tiny one
of a 4x6 grid is the same class with five departures:
- `patch_size` 8 folds 8x8 pixels into channels before the first convolution, so no level works at full resolution;
- `kernel_size` 1 keeps every cell to itself: an edit then changes the codes of the cells that it changes, no others;
- `norm` "position" normalizes each cell over its channels. A group norm takes its statistics over the grid, and on
  24 cells one object moves the codes of all the others;
- `middle_attention` off, for the same reason;
- `unit_codes` keeps latents and codes on the unit sphere, which trains well with few codes.

All feature maps are (B, C, H, W) in channels-last memory. Three things are computed otherwise than in the published
code, to the same result:
- the decoder's spatial norm scales and shifts by 1x1 convolutions of the codes. These commute with nearest
  upsampling, so they run once at latent resolution and are broadcast over each cell's square of pixels; the affine of
  the group norm is folded into them;
- the convolution after a nearest doubling runs before it, on a quarter of the pixels, as four smaller ones;
- attention has one head over all cells and goes through scaled_dot_product_attention.

The nearest code of a latent is found by |x|^2 + |c|^2 - 2 x.c as in the published code, in its order, so that ties fall
the same way. Distances are taken in fp32 whatever surrounds the call (autocast, TF32): under bf16 the published formula
returns other codes almost everywhere, without an error. Where a caller says nothing, cuDNN convolves float32 tensors in
TF32, with 10 bits of mantissa; `plain_float32` forbids it. Rows go through in chunks, because the (N, K) matrix of one
batch would take gigabytes; a chunk changes no code, and one that fits a processor's cache is also the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cuda, cudnn, mkldnn

NORM_GROUPS = 32
MAX_CODES = 2**16
POSITIVE = ("base_channels", "embed_dim", "codebook_size", "temporal_downsample_factor", "patch_size", "kernel_size")
EPSILON = 1e-6
CHUNK_BYTES = 8 * 2**20
# The recurrent one is set along, because torch's older flag refuses to be read while it differs from convolutions.
_OPERATIONS: tuple[Any, ...] = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)  # type: ignore[attr-defined]

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


def same_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """A convolution that keeps the size of the map."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class Norm(nn.Module):
    """Group or per-position norm; then a learned affine or, with `code_width`, a scale and shift read from the codes.

    forward(x (B, C, H, W), codes (B, code_width, h, w) or None) -> (B, C, H, W); H and W are multiples of h and w.
    """

    def __init__(self, channels: int, kind: str, code_width: int | None) -> None:
        super().__init__()
        self.channels = channels
        self.kind = kind
        if code_width is None:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.modulation = nn.Conv2d(code_width, 2 * channels, kernel_size=1)
            _, bias = self.modulation.parameters()
            nn.init.ones_(bias[:channels])
            nn.init.zeros_(bias[channels:])

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        if codes is None:
            return self._normalized(x, self.weight, self.bias)
        scale, shift = self.modulation(codes)[:, :, :, None, :, None].chunk(2, dim=1)
        cells = codes.shape[-2:]
        squares = self._normalized(x, None, None).unflatten(3, (cells[1], -1)).unflatten(2, (cells[0], -1))
        return torch.addcmul(shift, squares, scale).flatten(4, 5).flatten(2, 3)

    def _normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.kind == "group":
            return F.group_norm(x, NORM_GROUPS, weight, bias, EPSILON)
        return F.layer_norm(x.permute(0, 2, 3, 1), (self.channels,), weight, bias, EPSILON).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on x where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, config: StillVQConfig, code_width: int | None) -> None:
        super().__init__()
        self.norm1 = Norm(in_channels, config.norm, code_width)
        self.conv1 = same_conv(in_channels, out_channels, config.kernel_size)
        self.norm2 = Norm(out_channels, config.norm, code_width)
        self.conv2 = same_conv(out_channels, out_channels, config.kernel_size)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x, codes)))
        hidden = self.conv2(F.silu(self.norm2(hidden, codes)))
        return self.shortcut(x) + hidden


class Attention(nn.Module):
    """x + one-headed attention of each cell over all cells of the normalized x."""

    def __init__(self, channels: int, config: StillVQConfig, code_width: int | None) -> None:
        super().__init__()
        self.norm = Norm(channels, config.norm, code_width)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        cells = self.norm(x, codes).permute(0, 2, 3, 1)
        query, key, value = self.qkv(cells.flatten(1, 2)[:, None]).chunk(3, dim=-1)
        seen = self.out(F.scaled_dot_product_attention(query, key, value)[:, 0])
        return x + seen.view(cells.shape).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded at the right and the bottom only: (H, W) -> (H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest doubling, then a 3x3 convolution: (H, W) -> (2H, 2W).

    A doubled map shows a window of 3x3 only 2x2 different values, the same ones for every fourth window. So each of
    the four positions in a doubled pixel has a 2x2 kernel of sums of taps, and `at_half_resolution` (the default)
    applies those to the map as it was: 4 products instead of 9. Exact up to rounding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.at_half_resolution = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.at_half_resolution:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        height, width = x.shape[-2:]
        padded = F.pad(x, (1, 1, 1, 1))
        rows = []
        for row, kernels in enumerate(_halved(self.conv.weight, dim=2)):
            quarters = [
                F.conv2d(padded[:, :, row : row + height + 1, column : column + width + 1], kernel, self.conv.bias)
                for column, kernel in enumerate(_halved(kernels, dim=3))
            ]
            rows.append(torch.stack([quarter.permute(0, 2, 3, 1) for quarter in quarters], dim=3))
        # (B, H, 2, W, 2, C): laid out like this, the doubled map needs no further copy.
        return torch.stack(rows, dim=2).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _halved(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Along `dim`, the two taps by which the first and the second pixel of a doubled one see the map before it."""
    first, middle, last = kernel.split(1, dim)
    return torch.cat((first, middle + last), dim), torch.cat((first + middle, last), dim)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the level has it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        attention: bool,
        config: StillVQConfig,
        code_width: int | None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.blocks = nn.ModuleList(ResBlock(width, out_channels, config, code_width) for width in widths[:-1])
        self.attentions = nn.ModuleList(
            Attention(out_channels, config, code_width) for _ in range(blocks if attention else 0)
        )

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, codes)
            if self.attentions:
                x = self.attentions[index](x, codes)
        return x


class Middle(nn.Module):
    """Two residual blocks at latent resolution with attention between them."""

    def __init__(self, channels: int, config: StillVQConfig, code_width: int | None) -> None:
        super().__init__()
        self.block1 = ResBlock(channels, channels, config, code_width)
        self.attention = Attention(channels, config, code_width) if config.middle_attention else None
        self.block2 = ResBlock(channels, channels, config, code_width)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        x = self.block1(x, codes)
        if self.attention is not None:
            x = self.attention(x, codes)
        return self.block2(x, codes)


class LatentBlock(nn.Module):
    """x + conv(silu(conv(silu(a * x + b)))) on the latent: a temporal block of the published network at one frame.

    a and b (C,) are its first batch norm; the second one is folded into the first convolution.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.conv1 = same_conv(channels, channels, kernel_size)
        self.conv2 = same_conv(channels, channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(torch.addcmul(self.shift, x, self.scale)))
        return x + self.conv2(F.silu(hidden))


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
