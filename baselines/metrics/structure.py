"""Structure distance of PIE-Bench (Ju et al., 2024, "PnP Inversion"): how much an edit moved of a picture's layout;
lower is better.

The keys of all positions in the last layer of DINO's ViT-B/8, heads side by side, class token included, are compared
with each other by cosine; the distance is the mean squared difference of the two pictures' tables of cosines (the
self-similarity of Tumanyan et al., 2022, "Splicing ViT Features for Semantic Appearance Transfer", eq. 2 and 3, as a
mean). 0 to 4. PIE-Bench's is `structure_distance_source`, printed times 10^3.

Made comparable with PIE-Bench's own evaluation: the shorter side is scaled to 224 pixels and the longer to at most 480,
bilinear without antialiasing, and ImageNet's mean and deviation for pixels in [0, 1] are applied to pixels in [0, 255].
That is what its published figures were made with, though DINO was trained on other numbers. Where the Hub has the model
as a PyTorch file only, it has to be saved once into the folder of weights:

    python -c "from transformers import ViTModel as M
    M.from_pretrained('facebook/dino-vitb8', add_pooling_layer=False).save_pretrained('WEIGHTS/dino-vitb8')"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import ViTModel

from baselines.metrics.frames import score_pairs
from baselines.metrics.protocol import Missing, Pictures, Reference
from baselines.metrics.weights import device, folder_digest, load_model, model_folder, version_of

DINO = "facebook/dino-vitb8"
SHORT_SIDE, LONGEST_SIDE = 224, 480
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class StructureDistance:
    """Structure distance of every sample. `name` ends in `_source` where the edit is compared with its source."""

    higher_is_better = False

    def __init__(self, against: Reference, weights: Path | None) -> None:
        """Raises `Absent` and `UserError` as `weights.model_folder` and `weights.load_model`."""
        folder = model_folder(DINO, weights)
        self.name = "structure_distance" if against == "target" else "structure_distance_source"
        self.needs_target = against == "target"
        self.version = (
            f"{version_of('transformers')}, {DINO} {folder_digest(folder, ())}, "
            f"short side {SHORT_SIDE}, pixels in [0, 255]"
        )
        self._against = against
        self._model = load_model(ViTModel, folder, add_pooling_layer=False)

    def score(self, rows: Sequence[Pictures]) -> list[float | Missing]:
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
