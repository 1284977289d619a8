"""LPIPS (Zhang et al., 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"), lower is
better, and its shift-tolerant sibling.

d(a, b) = sum over stages of the mean over positions of w . (f(a) - f(b))^2, eq. 1 of the paper: f are a network's
features, scaled to unit length at each position, w >= 0 a weight per channel that was fitted to human judgements.
Pictures keep their size.

`lpips` has ImageNet's SqueezeNet 1.1 below it, as PIE-Bench's evaluation has (which prints it times 10^3). torchmetrics
computes the same number, and its weights w are used; but it takes the network from torchvision, whose builds fail to
import next to a torch of another kind, and which reads the network's file without restriction. Tests hold both equal.

`st_lpips` (Ghildyal and Liu, 2022, "Shift-tolerant Perceptual Similarity Metric") is another number, not comparable
with the first: it hardly moves when a picture is shifted by a pixel. Its package brings all weights along, so it works
offline: `pip install --no-deps stlpips-pytorch==0.0.2`. Only the file is read; the package itself is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines.metrics.backbones import Stages, shift_tolerant_alexnet, squeezenet
from baselines.metrics.frames import score_pairs
from baselines.metrics.protocol import Missing, Pictures, Reference
from baselines.metrics.weights import device, package_file, tensors, torch_file, version_of
from emu3.errors import UserError, one_line
from emu3.files import sha256_of

SQUEEZENET = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
SHIFT_TOLERANT = "weights/vST0.0/alex_shift_tolerant.pth"
SMALLEST_SIDE = 32
# What LPIPS takes off RGB in [-1, 1] and divides it by: about ImageNet's mean and deviation.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """The distance over a network's stages.

    weights: one tensor of C_s numbers per stage.
    """

    def __init__(self, stages: Stages, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.stages = stages
        for index, weight in enumerate(weights):
            self.register_buffer(f"weight{index}", weight.reshape(1, -1, 1, 1))

    def forward(self, edited: Tensor, reference: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) twice -> float32 (B,), 0 for equal pictures; NaN for sides below `SMALLEST_SIDE`."""
        if min(edited.shape[2:]) < SMALLEST_SIDE:
            return torch.full(edited.shape[:1], torch.nan)
        distance = torch.zeros(len(edited), device=edited.device)
        for index, (left, right) in enumerate(zip(self._features(edited), self._features(reference), strict=True)):
            weight = self.get_buffer(f"weight{index}")
            distance += ((left - right).square() * weight).sum(1).mean((1, 2))
        return distance

    def _features(self, pixels: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values, device=pixels.device).reshape(1, 3, 1, 1) for values in (SHIFT, SCALE))
        inputs = (pixels.float() / 127.5 - 1 - shift) / scale
        return [stage / (stage.square().sum(1, keepdim=True) + 1e-8).sqrt() for stage in self.stages(inputs)]


class Perceptual:
    """A perceptual distance of every sample. `name` ends in `_source` where the edit is compared with its source."""

    higher_is_better = False

    def __init__(self, name: str, against: Reference, network: PerceptualDistance, version: str) -> None:
        self.name = name if against == "target" else f"{name}_source"
        self.needs_target = against == "target"
        self.version = version
        self._against = against
        self._network = network.eval().to(device())

    def score(self, rows: Sequence[Pictures]) -> list[float | Missing]:
        undefined = f"a side is shorter than the {SMALLEST_SIDE} pixels that the network needs"
        return score_pairs(rows, self._against, self._network, device(), undefined)


def lpips(against: Reference, weights: Path | None) -> Perceptual:
    """LPIPS on SqueezeNet. Raises `Absent` without its file or torchmetrics, `UserError` for another network's file."""
    heads = tensors(
        package_file("torchmetrics", "functional/image/lpips_models/squeeze.pth", "pip install torchmetrics")
    )
    file = torch_file(SQUEEZENET, weights)
    network = PerceptualDistance(squeezenet(), [heads[f"lin{stage}.model.1.weight"] for stage in range(7)])
    features = {name: tensor for name, tensor in tensors(file).items() if name.startswith("features.")}
    _load(network.stages, features, file)
    version = f"{file.name}, weights of {version_of('torchmetrics')}, RGB in [-1, 1], unscaled size"
    return Perceptual("lpips", against, network, version)


def st_lpips(against: Reference) -> Perceptual:
    """ST-LPIPS on AlexNet, its file from the installed package.

    Raises `Absent` without that file, `UserError` for one that holds something else.
    """
    file = package_file("stlpips_pytorch", SHIFT_TOLERANT, "pip install --no-deps stlpips-pytorch==0.0.2")
    state = tensors(file)
    try:
        heads = [state[f"lin{stage}.model.1.weight"] for stage in range(5)]
    except KeyError as error:
        raise UserError(f"{file} has no tensor {error}: it holds something else than ST-LPIPS") from None
    network = PerceptualDistance(shift_tolerant_alexnet(), heads)
    # net.slice3.9.weight -> features.9.weight: stages count their layers through.
    features = {f"features.{'.'.join(name.split('.')[2:])}": state[name] for name in state if name.startswith("net.")}
    _load(network.stages, features, file)
    version = f"{file.name} {sha256_of(file)[:12]}, RGB in [-1, 1], unscaled size"
    return Perceptual("st_lpips", against, network, version)


def _load(stages: Stages, features: dict[str, Tensor], file: Path) -> None:
    try:
        stages.load_state_dict(features)
    except RuntimeError as error:
        raise UserError(f"{file} holds another network: {one_line(error)}") from None
