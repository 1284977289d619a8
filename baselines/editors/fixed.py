"""Pictures that no model has to make: the source itself, the data set's target, and finished ones from a folder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from baselines.benchmarks.samples import Sample
from baselines.editors.protocol import Answer, Edited, NoPicture, Predictor
from emu3.errors import UserError
from emu3.tokenizer.images import read_image
from emu3.train_image_editing.image_rows import BadRow, ImageFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class NoEdit:
    """Gives the source back: what a judge grants for doing nothing."""

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Answer]:
        return [Edited(image) for image in images]


def ground_truth(samples: Sequence[Sample], seed: int) -> list[Answer]:
    """The targets: what the judge grants for doing right. A predictor, see `baselines.editors.protocol`."""
    answers: list[Answer] = [Edited(sample.target) for sample in samples if sample.target is not None]
    if len(answers) != len(samples):
        missing = next(sample.id for sample in samples if sample.target is None)
        raise UserError(f"ground truth: row {missing} has no target picture")
    return answers


def finished_in(folder: Path) -> Predictor:
    """The predictor that takes ID.png (or .jpg, .jpeg, .webp) from `folder`. An id that leads out of it has none."""
    if not folder.is_dir():
        raise UserError(f"folder {folder} of finished pictures does not exist")
    root = folder.resolve()

    def predict(samples: Sequence[Sample], seed: int) -> list[Answer]:
        return [_finished(root, sample.id) for sample in samples]

    return predict


def _finished(root: Path, id: str) -> Answer:
    for suffix in SUFFIXES:
        try:
            data = ImageFile(root, f"{id}{suffix}").read()
        except BadRow:
            continue
        try:
            return Edited(read_image(io.BytesIO(data), f"{id}{suffix}"))
        except UserError as error:
            return NoPicture(str(error))
    return NoPicture(f"{root} has no picture {id}.png (nor {', '.join(SUFFIXES[1:])})")
