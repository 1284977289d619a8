"""Who answers: an `ImageEditor` sees pictures and instructions, a `Predictor` sees whole rows.

The runner knows predictors only. `seen_by` makes one of an editor and hands it nothing but the picture and the
instruction, so no model can look at a target; the ground truth and a folder of finished pictures are the predictors
that need more of a row, and no place in the editors' protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from baselines.benchmarks.samples import Sample
from emu3.errors import UserError


@dataclass(frozen=True)
class Edited:
    """One edited picture, RGB, and the chain of thought before it, if there was one.

    candidates: scores of the pictures that this one was chosen among, None for one without a score; empty where
    nothing was chosen.
    """

    image: Image.Image
    reasoning: str | None = None
    candidates: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class NoPicture:
    """A sample that came to nothing while others may do. reason: one line."""

    reason: str


Answer = Edited | NoPicture
Predictor = Callable[[Sequence[Sample], int], Sequence[Answer]]


class ImageEditor(Protocol):
    """Edits a batch.

    `edit` takes RGB pictures at the size that the data set has (the editor brings them to its own), one instruction
    per picture and the batch's seed, and gives one answer per input, in order. The same arguments give the same
    pictures.
    """

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> Sequence[Answer]: ...


def seen_by(editor: ImageEditor, name: str) -> Predictor:
    """The predictor that asks `editor`, called `name`. Raises `UserError` when a batch comes back with another number
    of pictures: which picture belongs to which sample cannot be told then."""

    def predict(samples: Sequence[Sample], seed: int) -> Sequence[Answer]:
        answers = editor.edit([sample.source for sample in samples], [sample.instruction for sample in samples], seed)
        if len(answers) != len(samples):
            ids = f"{samples[0].id} to {samples[-1].id}" if len(samples) > 1 else samples[0].id
            raise UserError(f"{name} gave {len(answers)} pictures for {len(samples)} samples ({ids}): none was kept")
        return answers

    return predict
