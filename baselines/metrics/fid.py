"""Fréchet distance of two sets of images (Heusel et al., 2017, "GANs Trained by a Two Time-Scale Update Rule"), lower
is better: |m - n|^2 + tr(C + D - 2 (C D)^(1/2)), with means m, n and covariances C, D of the network's features.

`fid` compares the edited images with the target images of the same rows, by torchmetrics, on the 2,048 pooled
features of TensorFlow's Inception of 2015 as torch-fidelity ported it, with its scaling to 299x299. Each image is
scaled by itself; sizes need not agree. torch-fidelity imports torchvision: where that is lacking there is no FID.

An estimate from n samples is too high by a bias that shrinks with n, and below 2,048 samples the covariance does not
even have full rank: such numbers are comparable only at the same n, and a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from math import isfinite
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from baselines.metrics.image_metric import EditedSample, Missing, as_tensor, batches
from baselines.metrics.metric_weights import device, library, tensors, torch_file, version_of
from emu3.tokenizer.blocks import plain_float32
from emu3.tokenizer.images import to_rgb

INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
FEATURES = 2048
ROWS_AT_ONCE = 64


class Fid:
    """Fréchet distance between edited and target images, on the features of any network.

    network: uint8 (B, 3, H, W) -> float (B, features).
    """

    name = "fid"
    higher_is_better = False
    needs_target = True

    def __init__(self, network: nn.Module, features: int, version: str) -> None:
        """Raises `MissingDependency` without torchmetrics."""
        self._frechet = library("torchmetrics.image.fid", "torchmetrics").FrechetInceptionDistance
        self.version = f"{version_of('torchmetrics')}, {version}"
        self._network = network
        self._features = features
        # Where torchmetrics looks for it; otherwise it runs an image of its own through the network.
        network.num_features = features  # type: ignore[assignment]

    def score_set(self, rows: Iterable[EditedSample]) -> tuple[float, int] | Missing:
        """(distance, n) over the rows that have a target. Warns if n is below the number of features."""
        frechet = self._frechet(feature=self._network).to(device())
        count = 0
        with torch.inference_mode(), plain_float32():
            for pairs in _chunks((row.edited, row.target) for row in rows if row.target is not None):
                count += len(pairs)
                for side, real in enumerate((False, True)):
                    images = {place: to_rgb(pair[side]) for place, pair in enumerate(pairs)}
                    for places in batches({place: image.size for place, image in images.items()}):
                        frechet.update(as_tensor([images[place] for place in places], device()), real=real)
            if count < 2:
                return Missing(f"a Fréchet distance needs 2 samples with a target image, there are {count}")
            value = float(frechet.compute())
        if count < self._features:
            warnings.warn(
                f"FID over {count} samples on {self._features} features is biased upwards: compare it at equal n only",
                stacklevel=2,
            )
        return (value, count) if isfinite(value) else Missing("the Fréchet distance is not finite")


def _chunks(
    pairs: Iterable[tuple[Image.Image, Image.Image]],
) -> Iterator[list[tuple[Image.Image, Image.Image]]]:
    remaining = iter(pairs)
    while chunk := list(islice(remaining, ROWS_AT_ONCE)):
        yield chunk


def fid(weights: Path | None) -> Fid:
    """FID on Inception. Raises `MissingDependency` without torch-fidelity, torchvision, torchmetrics or the weights."""
    library("torch_fidelity", "torch-fidelity")
    inception = library("torchmetrics.image.fid", "torchmetrics").NoTrainInceptionV3
    file = torch_file(INCEPTION, weights)
    # torch-fidelity reads the file without restriction; what the restricted reader has accepted holds no code.
    tensors(file)
    network = inception("inception-v3-compat", [str(FEATURES)], str(file), antialias=False)
    return Fid(
        network, FEATURES, f"{version_of('torch-fidelity')}, {file.name}, TensorFlow's bilinear scaling to 299x299"
    )
