"""Best of n: of n edits of a picture, the one that a judge scores highest (the paper's Table 11 has n = 5).

How the paper's pick was made is not said. Here it is VIEScore's overall score by a named judge, on the pictures as the
evaluation shows them; of equal scores the first wins. Where the same judge evaluates afterwards, its luck counts twice:
use another one, or read the figure as an upper bound.

An edit with an answer that holds no score is never picked, and stays in the record as None. Where the judge could not
be asked, the sample has no picture at all and is made again by the next run: a best of four is not a best of five.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from baselines.editors.pictures import Frame
from baselines.editors.protocol import Answer, Edited, NoPicture
from rl.reward.scorer import Scorer
from rl.reward.scores import Outcome, Score, Unavailable


class Candidates(Protocol):
    """What can make several edits of one picture."""

    image_area: int

    def candidates(
        self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int, n: int
    ) -> list[list[Edited]]: ...


class BestOf:
    """An `ImageEditor` that makes `n` edits with `editor` and keeps the one that `scorer` likes best."""

    def __init__(self, editor: Candidates, n: int, scorer: Scorer) -> None:
        self._editor = editor
        self._n = n
        self._scorer = scorer

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Answer]:
        groups = self._editor.candidates(images, instructions, seed, self._n)
        shown = [Frame(image, self._editor.image_area).shown for image in images]
        pending = [
            [self._scorer.submit(instruction, source, candidate.image) for candidate in group]
            for instruction, source, group in zip(instructions, shown, groups, strict=True)
        ]
        return [
            pick(group, [future.result() for future in futures]) for group, futures in zip(groups, pending, strict=True)
        ]


def pick(candidates: Sequence[Edited], outcomes: Sequence[Outcome]) -> Answer:
    """The candidate with the highest score, with all scores; or why there is none."""
    for outcome in outcomes:
        if isinstance(outcome, Unavailable):
            return NoPicture(f"the judge scored not all of {len(candidates)} edits: {outcome.reason}")
    scores = tuple(outcome.value if isinstance(outcome, Score) else None for outcome in outcomes)
    scored = [(score, -place) for place, score in enumerate(scores) if score is not None]
    if not scored:
        return NoPicture(f"none of the judge's answers about {len(candidates)} edits holds a score")
    chosen = candidates[-max(scored)[1]]
    return Edited(chosen.image, chosen.reasoning, scores)
