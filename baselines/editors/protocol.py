"""Who answers: an `ImageEditor` sees pictures and instructions, a `Predictor` sees whole rows.

The runner knows predictors only. `seen_by` makes one of an editor and hands it nothing but the picture and the
instruction, so no model can look at a target; the ground truth (`ground_truth`) is the one predictor that does, and
needs no place in the editors' protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from PIL import Image

from baselines.benchmarks.samples import Sample
from emu3.errors import UserError

Predictor = Callable[[Sequence[Sample], int], list[Image.Image]]


class ImageEditor(Protocol):
    """Edits a batch.

    `edit` takes RGB pictures at the size that the data set has (the editor brings them to its own), one instruction
    per picture and the batch's seed, and gives one RGB picture per input, in order. The same arguments give the
    same pictures.
    """

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Image.Image]: ...


def seen_by(editor: ImageEditor) -> Predictor:
    """The predictor that asks `editor`. Raises `UserError` when a batch comes back with another number of pictures."""

    def predict(samples: Sequence[Sample], seed: int) -> list[Image.Image]:
        edited = editor.edit([sample.source for sample in samples], [sample.instruction for sample in samples], seed)
        if len(edited) != len(samples):
            raise UserError(f"{type(editor).__name__} gave {len(edited)} pictures for {len(samples)} samples")
        return edited

    return predict
