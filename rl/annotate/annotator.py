"""One row of a data set to the judge and back: pictures at the size that boxes are counted in, an answer, its steps.

The client is the one of the reward (`rl.reward.judge`): its retries, its deadline, its bound on what is in flight, its
cache of answers, and its second try with another seed for an answer that cannot be used.
"""

from __future__ import annotations

from PIL import Image

from emu3.train_image_editing.image_rows import ImageRow
from rl.annotate.steps import Failure, chain_of_thought, question, sent_size
from rl.reward.judge import Judge
from rl.reward.outcome import Unavailable

NO_TARGET, REFUSED, NO_ANSWER = "no target picture", "the judge refused", "no answer"


class Annotator:
    """Asks `judge` for chains of thought. area: pixels of the pictures that it gets. key: the column of the text."""

    def __init__(self, judge: Judge, area: int, key: str) -> None:
        self._judge = judge
        self._area = area
        self._key = key

    async def annotate(self, row: ImageRow) -> str | Failure:
        """The chain of thought of a row, boxes in pixels of its source, or why there is none."""
        if row.edited is None:
            return Failure(NO_TARGET, "the edited picture is empty")
        size = sent_size(row.source.size, self._area)
        edited_size = sent_size(row.edited.size, self._area)
        pictures = [
            row.source.resize(size, Image.Resampling.BICUBIC),
            row.edited.resize(edited_size, Image.Resampling.BICUBIC),
        ]

        def read(answer: str) -> str | Failure:
            return chain_of_thought(answer, size, row.source.size, self._key)

        def accept(answer: str) -> bool:
            return isinstance(read(answer), str)

        answer = await self._judge.ask(question(row.instruction, size), pictures, accept)
        if isinstance(answer, Unavailable):
            return Failure(REFUSED if answer.refused else NO_ANSWER, answer.reason)
        return read(answer)
