"""An editor of one's own: turns an image upside down where the instruction says so.

    python -m baselines.evaluate --editor docs/templates/editor.py:Flip --data pairs.parquet --output runs/flip

A class of `--model` (None where it is not given) with `edit` (`ImageEditor` in baselines/editors/editing.py). It is
made once, when there is something to edit. The same arguments have to give the same images; images come back at any
size of the same shape. `--batch-size` says how many it gets at once (1).
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageOps

from baselines.editors.editing import Edited, EditResult, NoImage


class Flip:
    def __init__(self, model: str | None) -> None:
        del model  # it has none

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> Sequence[EditResult]:
        """One result per image, in order; `NoImage` with a reason where there is none."""
        return [
            Edited(ImageOps.flip(image)) if "upside down" in instruction else NoImage("not an instruction for it")
            for image, instruction in zip(images, instructions, strict=True)
        ]
