"""The two networks below the perceptual distances, as feature stages; their weights come from `perceptual`.

SqueezeNet 1.1 (Iandola et al., 2016) with torchvision's numbering of layers, so that its published file loads. AlexNet
as ST-LPIPS changes it: every stride becomes a blur followed by the stride (Zhang, 2019, "Making Convolutional Networks
Shift-Invariant Again"), the first convolution keeps stride 1, and one more pixel is reflected on each side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad


class Stages(nn.Module):
    """Layers in a row, of which some are looked at. ends: stage s ends before layer ends[s]."""

    def __init__(self, layers: Sequence[nn.Module], ends: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self._ends = tuple(ends)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one (B, C_s, H_s, W_s) per stage."""
        stages, start = [], 0
        for end in self._ends:
            inputs = self.features[start:end](inputs)
            stages.append(inputs)
            start = end
        return stages


class Fire(nn.Module):
    """SqueezeNet's block: 1x1 to few channels, then 1x1 and 3x3 side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        few = self.squeeze(inputs).relu()
        return torch.cat([self.expand1x1(few).relu(), self.expand3x3(few).relu()], 1)


def squeezenet() -> Stages:
    """SqueezeNet 1.1 without its classifier: 7 stages of 64, 128, 256, 384, 384, 512 and 512 channels."""
    pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    layers = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool, Fire(64, 16, 64), Fire(128, 16, 64)]
    layers += [pool, Fire(128, 32, 128), Fire(256, 32, 128)]
    layers += [pool, Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    return Stages(layers, (2, 5, 8, 10, 11, 12, 13))


class BlurredStride(nn.Module):
    """A 3x3 binomial blur, then every second position; two pixels are reflected on each side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", line.outer(line).expand(channels, 1, 3, 3).clone())

    def forward(self, inputs: Tensor) -> Tensor:
        filters = self.get_buffer("filt")
        return conv2d(pad(inputs, (2, 2, 2, 2), mode="reflect"), filters, stride=2, groups=len(filters))


def shift_tolerant_alexnet() -> Stages:
    """The convolutions of ST-LPIPS's AlexNet: 5 stages of 64, 192, 384, 256 and 256 channels."""
    layers = [nn.Conv2d(3, 64, 11, padding=2), BlurredStride(64), nn.ReLU()]
    layers += [nn.MaxPool2d(3, stride=1), BlurredStride(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, stride=1), BlurredStride(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
    return Stages(layers, (3, 7, 11, 13, 15))
