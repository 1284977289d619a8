"""Our own models, sampled as published: one sample, temperature 1, top-k 2,048, no classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from baselines.editors.protocol import Edited
from emu3.mllm.editor import Editor


class Emu3Editor:
    """A loaded model as an `ImageEditor`. The pictures go in at `image_area` pixels and come out at that size.

    top_k: None draws among all codes. think: write a chain of thought before each picture.
    """

    def __init__(self, editor: Editor, *, temperature: float, top_k: int | None, think: bool, image_area: int) -> None:
        self._editor = editor
        self._temperature = temperature
        self._top_k = top_k
        self._think = think
        self.image_area = image_area

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Edited]:
        return [edit for [edit] in self.candidates(images, instructions, seed, 1)]

    def candidates(
        self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int, n: int
    ) -> list[list[Edited]]:
        """`n` edits of each picture; the first is the one that `edit` gives."""
        groups = self._editor.edit(
            images,
            instructions,
            n=n,
            temperature=self._temperature,
            top_k=self._top_k,
            seed=seed,
            think=self._think,
            image_area=self.image_area,
        )
        return [[Edited(edit.image, edit.reasoning) for edit in group] for group in groups]
