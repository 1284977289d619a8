"""Distances of two images in a network's features, lower is better: LPIPS, its shift-tolerant sibling, and the
structure distance of PIE-Bench.

LPIPS (Zhang et al., 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric") is d(a, b) = sum
over stages of the mean over positions of w . (f(a) - f(b))^2, eq. 1 of the paper: f are a network's features, scaled to
unit length at each position, w >= 0 a weight per channel that was fitted to human judgements. Images keep their size.
`lpips` has ImageNet's SqueezeNet 1.1 (Iandola et al., 2016) below it, as PIE-Bench's evaluation has (which prints it
times 10^3). torchmetrics computes the same number, and its weights w are used; but it takes the network from
torchvision, whose builds fail to import next to a torch of another kind, and which reads the network's file without
restriction. Tests hold both equal.

`st_lpips` (Ghildyal and Liu, 2022, "Shift-tolerant Perceptual Similarity Metric") is another number, not comparable
with the first: it hardly moves when an image is shifted by a pixel. In its AlexNet every stride becomes a blur followed
by the stride (Zhang, 2019, "Making Convolutional Networks Shift-Invariant Again"), the first convolution keeps stride
1, and one more pixel is reflected on each side. Its package brings all weights along, so it works offline: `pip install
--no-deps stlpips-pytorch==0.0.2`. Only the file is read; the package itself is not imported.

`structure_distance` (Ju et al., 2024, "PnP Inversion") says how much an edit moved of an image's layout. The keys of
all positions in the last layer of DINO's ViT-B/8, heads side by side, class token included, are compared with each
other by cosine; the distance is the mean squared difference of the two images' tables of cosines (the self-similarity
of Tumanyan et al., 2022, "Splicing ViT Features for Semantic Appearance Transfer", eq. 2 and 3, as a mean). 0 to 4.
PIE-Bench's is `structure_distance_source`, printed times 10^3. Made comparable with PIE-Bench's own evaluation: the
shorter side is scaled to 224 pixels and the longer to at most 480, bilinear without antialiasing, and ImageNet's mean
and deviation for pixels in [0, 1] are applied to pixels in [0, 255]. That is what its published numbers were made with,
though DINO was trained on other ones. Where the Hub has the model as a PyTorch file only, it has to be saved once into
the folder of weights:

    python -c "from transformers import ViTModel as M
    M.from_pretrained('facebook/dino-vitb8', add_pooling_layer=False).save_pretrained('WEIGHTS/dino-vitb8')"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, normalize, pad

from baselines.metrics.image_metric import Against, EditedSample, Missing, score_pairs
from baselines.metrics.metric_weights import (
    device,
    folder_digest,
    load_model,
    model_folder,
    package_file,
    tensors,
    torch_file,
    version_of,
)
from emu3.errors import UserError, one_line
from emu3.files import sha256_of

SQUEEZENET = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
SHIFT_TOLERANT = "weights/vST0.0/alex_shift_tolerant.pth"
SMALLEST_SIDE = 32
# What LPIPS takes off RGB in [-1, 1] and divides it by: about ImageNet's mean and deviation.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

DINO = "facebook/dino-vitb8"
SHORT_SIDE, LONGEST_SIDE = 224, 480
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureStages(nn.Module):
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


def squeezenet() -> FeatureStages:
    """SqueezeNet 1.1 without its classifier: 7 stages of 64, 128, 256, 384, 384, 512 and 512 channels. Its layers are
    numbered as torchvision has them, so that the published file loads."""
    pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    layers = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool, Fire(64, 16, 64), Fire(128, 16, 64)]
    layers += [pool, Fire(128, 32, 128), Fire(256, 32, 128)]
    layers += [pool, Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    return FeatureStages(layers, (2, 5, 8, 10, 11, 12, 13))


class BlurredStride(nn.Module):
    """A 3x3 binomial blur, then every second position; two pixels are reflected on each side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", line.outer(line).expand(channels, 1, 3, 3).clone())

    def forward(self, inputs: Tensor) -> Tensor:
        filters = self.get_buffer("filt")
        return conv2d(pad(inputs, (2, 2, 2, 2), mode="reflect"), filters, stride=2, groups=len(filters))


def shift_tolerant_alexnet() -> FeatureStages:
    """The convolutions of ST-LPIPS's AlexNet: 5 stages of 64, 192, 384, 256 and 256 channels."""
    layers = [nn.Conv2d(3, 64, 11, padding=2), BlurredStride(64), nn.ReLU()]
    layers += [nn.MaxPool2d(3, stride=1), BlurredStride(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, stride=1), BlurredStride(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
    return FeatureStages(layers, (3, 7, 11, 13, 15))


class PerceptualDistance(nn.Module):
    """The distance over a network's stages.

    weights: one tensor of C_s numbers per stage.
    """

    def __init__(self, stages: FeatureStages, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.stages = stages
        for index, weight in enumerate(weights):
            self.register_buffer(f"weight{index}", weight.reshape(1, -1, 1, 1))

    def forward(self, edited: Tensor, reference: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) twice -> float32 (B,), 0 for equal images; NaN for sides below `SMALLEST_SIDE`."""
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

    def __init__(self, name: str, against: Against, network: PerceptualDistance, version: str) -> None:
        self.name = name if against == "target" else f"{name}_source"
        self.needs_target = against == "target"
        self.version = version
        self._against = against
        self._network = network.eval().to(device())

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        undefined = f"a side is shorter than the {SMALLEST_SIDE} pixels that the network needs"
        return score_pairs(rows, self._against, self._network, device(), undefined)


def lpips(against: Against, weights: Path | None) -> Perceptual:
    """LPIPS on SqueezeNet. Raises `MissingDependency` without its file or torchmetrics, `UserError` for a file of
    another network."""
    heads = tensors(
        package_file("torchmetrics", "functional/image/lpips_models/squeeze.pth", "pip install torchmetrics")
    )
    file = torch_file(SQUEEZENET, weights)
    network = PerceptualDistance(squeezenet(), [heads[f"lin{stage}.model.1.weight"] for stage in range(7)])
    features = {name: tensor for name, tensor in tensors(file).items() if name.startswith("features.")}
    _load(network.stages, features, file)
    version = f"{file.name}, weights of {version_of('torchmetrics')}, RGB in [-1, 1], unscaled size"
    return Perceptual("lpips", against, network, version)


def st_lpips(against: Against) -> Perceptual:
    """ST-LPIPS on AlexNet, its file from the installed package.

    Raises `MissingDependency` without that file, `UserError` for one that holds something else.
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


def _load(stages: FeatureStages, features: dict[str, Tensor], file: Path) -> None:
    try:
        stages.load_state_dict(features)
    except RuntimeError as error:
        raise UserError(f"{file} holds another network: {one_line(error)}") from None


class StructureDistance:
    """Structure distance of every sample. `name` ends in `_source` where the edit is compared with its source."""

    higher_is_better = False

    def __init__(self, against: Against, weights: Path | None) -> None:
        """Raises `MissingDependency` and `UserError` as `model_folder` and `load_model`."""
        # Imported here: it takes seconds, and LPIPS needs nothing of it.
        from transformers import ViTModel

        folder = model_folder(DINO, weights)
        self.name = "structure_distance" if against == "target" else "structure_distance_source"
        self.needs_target = against == "target"
        self.version = (
            f"{version_of('transformers')}, {DINO} {folder_digest(folder, ())}, "
            f"short side {SHORT_SIDE}, pixels in [0, 255]"
        )
        self._against = against
        self._model = load_model(ViTModel, folder, add_pooling_layer=False)

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        return score_pairs(rows, self._against, self._distance, device())

    def _distance(self, edited: Tensor, reference: Tensor) -> Tensor:
        """Pair by pair: a table of cosines has millions of entries."""
        pairs = zip(edited.split(1), reference.split(1), strict=True)
        return torch.stack([(self.cosines(left) - self.cosines(right)).square().mean() for left, right in pairs])

    def cosines(self, pixels: Tensor) -> Tensor:
        """uint8 (1, 3, H, W) -> float32 (T, T): what the keys of T positions have in common."""
        scaled = interpolate(pixels.float(), _scaled_size(*pixels.shape[2:]), mode="bilinear", align_corners=False)
        mean, deviation = (scaled.new_tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        output = self._model((scaled - mean) / deviation, interpolate_pos_encoding=True, output_hidden_states=True)
        last: Any = self._model.layers[-1]
        keys = normalize(last.attention.k_proj(last.layernorm_before(output.hidden_states[-2]))[0], dim=1)
        return keys @ keys.T


def _scaled_size(height: int, width: int) -> tuple[int, int]:
    """The sides with the shorter one at `SHORT_SIDE`, or below it where the longer one would pass `LONGEST_SIDE`."""
    short, long = min(height, width), max(height, width)
    new_short, new_long = SHORT_SIDE, SHORT_SIDE * long // short
    if new_long > LONGEST_SIDE:
        new_short, new_long = LONGEST_SIDE * SHORT_SIDE // new_long, LONGEST_SIDE
    return (new_short, new_long) if height <= width else (new_long, new_short)
