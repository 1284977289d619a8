"""Floor and ceiling: the source itself, and the picture that the data set calls right."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from baselines.benchmarks.samples import Sample
from emu3.errors import UserError


class NoEdit:
    """Gives the source back: what a judge grants for doing nothing."""

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Image.Image]:
        return list(images)


def ground_truth(samples: Sequence[Sample], seed: int) -> list[Image.Image]:
    """The targets: what the judge grants for doing right. A predictor, see `baselines.editors.protocol`."""
    targets = [sample.target for sample in samples if sample.target is not None]
    if len(targets) != len(samples):
        missing = next(sample.id for sample in samples if sample.target is None)
        raise UserError(f"ground truth: row {missing} has no target picture")
    return targets
