"""Our own models, sampled as published: one sample, temperature 1, top-k 2,048, no classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from emu3.mllm.editor import Editor


class Emu3Editor:
    """A checkpoint as an `ImageEditor`. The pictures go in at `image_area` pixels and come out at that size.

    think: write a chain of thought before each picture; it is not kept.
    """

    def __init__(
        self, model: Path, vision: Path, *, temperature: float, top_k: int | None, think: bool, image_area: int
    ) -> None:
        self._editor = Editor.from_pretrained(model, vision)
        self._temperature = temperature
        self._top_k = top_k
        self._think = think
        self._image_area = image_area

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Image.Image]:
        edits = self._editor.edit(
            list(images),
            list(instructions),
            n=1,
            temperature=self._temperature,
            top_k=self._top_k,
            seed=seed,
            think=self._think,
            image_area=self._image_area,
        )
        return [edit.image for [edit] in edits]
