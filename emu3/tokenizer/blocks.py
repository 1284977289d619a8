"""Layers of the still tokenizer: those of MoVQGAN (Zheng et al. 2022) as Emu3 has them, at one frame.

All feature maps are (B, C, H, W) in channels-last memory. Three things are computed otherwise than in the published
code, to the same result:
- the decoder's spatial norm scales and shifts by 1x1 convolutions of the codes. These commute with nearest
  upsampling, so they run once at latent resolution and are broadcast over each cell's square of pixels; the affine of
  the group norm is folded into them;
- the convolution after a nearest doubling runs before it, on a quarter of the pixels, as four smaller ones;
- attention has one head over all cells and goes through scaled_dot_product_attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu3.tokenizer.config import NORM_GROUPS, StillVQConfig

EPSILON = 1e-6


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
            return self._normalised(x, self.weight, self.bias)
        scale, shift = self.modulation(codes)[:, :, :, None, :, None].chunk(2, dim=1)
        cells = codes.shape[-2:]
        squares = self._normalised(x, None, None).unflatten(3, (cells[1], -1)).unflatten(2, (cells[0], -1))
        return torch.addcmul(shift, squares, scale).flatten(4, 5).flatten(2, 3)

    def _normalised(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
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
    """x + one-headed attention of each cell over all cells of the normalised x."""

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
