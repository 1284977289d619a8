"""The encoder of the `dino` similarity: class tokens of DINOv2 (Oquab et al., 2024, "DINOv2: Learning Robust Visual
Features without Supervision")."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BitImageProcessorPil, Dinov2Model

from baselines.metrics.weights import device, folder_digest, load_model, model_folder, version_of
from emu3.errors import UserError, one_line
from emu3.tokenizer.quantizer import plain_float32

DINOV2 = "facebook/dinov2-base@f9e44c814b77203eaa57a6bdbbd535f21ede1415"
BATCH = 64


class DinoEncoder:
    """Pictures as DINOv2 sees them."""

    def __init__(self, name: str, folder: Path) -> None:
        """`folder` as `Dinov2Model.save_pretrained` makes it, with its processor; `UserError` for another one.

        name: what the version calls the model.
        """
        self._model = load_model(Dinov2Model, folder)
        try:
            self._processor = BitImageProcessorPil.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} lacks DINOv2's processor: {one_line(error)}") from error
        digest = folder_digest(folder, ("preprocessor_config.json",))
        self.version = f"{version_of('transformers')}, {name} {digest}, BitImageProcessorPil"

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any sizes -> float32 (B, D) of unit length."""
        parts = []
        with torch.inference_mode(), plain_float32():
            for start in range(0, len(images), BATCH):
                inputs = self._processor(images=list(images[start : start + BATCH]), return_tensors="pt")
                parts.append(self._model(inputs["pixel_values"].to(device())).last_hidden_state[:, 0])
            return normalize(torch.cat(parts), dim=1)


@cache
def dino_encoder(weights: Path | None) -> DinoEncoder:
    """The encoder of `DINOV2`, loaded once. Raises `Absent` and `UserError` as `weights.model_folder`."""
    return DinoEncoder(DINOV2, model_folder(DINOV2, weights))
