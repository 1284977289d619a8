"""Cosine of two pictures' embeddings, -1 to 1, higher is better.

`clip_i` has CLIP's projected image embedding (Radford et al., 2021; "CLIP-I" in Ruiz et al., 2023), `dino` the class
token of DINOv2 (Oquab et al., 2024) after its last norm. Published tables with a column "DINO" mostly have the first
DINO's ViT-S/16: their figures are not comparable with these.

Each picture goes through the model's own processor by itself (its shortest side scaled, the middle square taken), so
sizes need not agree. What lies outside the middle square of a wide picture is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image
from torch import Tensor

from baselines.metrics.frames import reference_of
from baselines.metrics.protocol import Missing, Pictures, Reference


class ImageEncoder(Protocol):
    """Something that embeds pictures; `version` names weights and preprocessing."""

    @property
    def version(self) -> str: ...

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any sizes -> float32 (B, D) of unit length."""
        ...


class ImageSimilarity:
    """Cosine between an edited picture and what it is compared with. `name` ends in `_source` for the source."""

    higher_is_better = True

    def __init__(self, name: str, against: Reference, encoder: ImageEncoder) -> None:
        self.name = name if against == "target" else f"{name}_source"
        self.needs_target = against == "target"
        self.version = encoder.version
        self._against = against
        self._encoder = encoder

    def score(self, rows: Sequence[Pictures]) -> list[float | Missing]:
        references = [reference_of(row, self._against) for row in rows]
        pairs = {
            place: (row.edited, reference)
            for place, (row, reference) in enumerate(zip(rows, references, strict=True))
            if not isinstance(reference, Missing)
        }
        scores: dict[int, float | Missing] = {
            place: reference for place, reference in enumerate(references) if isinstance(reference, Missing)
        }
        if pairs:
            edited, reference = (self._encoder.images([pair[side] for pair in pairs.values()]) for side in (0, 1))
            scores |= zip(pairs, (edited * reference).sum(1).tolist(), strict=True)
        return [scores[place] for place in range(len(rows))]
