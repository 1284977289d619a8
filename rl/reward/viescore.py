"""VIEScore for edited pictures (Ku et al., 2024, "VIEScore: Towards Explainable Metrics for Conditional Image
Synthesis Evaluation"), the reward and the metric of the paper.

Two questions: SC shows the judge the instruction, the source and the edited picture and asks for edit success
and overediting; PQ shows the edited picture alone and asks for naturalness and artifacts. Every grade is 0 to
10, 10 being best. SC and PQ are the minima of their two grades, and the score is sqrt(SC * PQ).
"""

from __future__ import annotations

import asyncio
import math

from PIL import Image

from rl.reward.answers import parse_scores
from rl.reward.judge import Judge
from rl.reward.outcome import Outcome, Score, Unavailable, Unparsable
from rl.reward.prompts import EditPrompts


def _is_readable(answer: str) -> bool:
    return parse_scores(answer) is not None


class VieScore:
    """Scores edited pictures by what `judge` answers to `prompts`."""

    def __init__(self, judge: Judge, prompts: EditPrompts) -> None:
        self.judge = judge
        self.prompts = prompts

    async def score(self, instruction: str, source: Image.Image, edited: Image.Image) -> Outcome:
        """`Score` with the parts edit_success, overedit, naturalness, no_artifacts, sc and pq, all 0 to 10, or
        what became of the first question, SC before PQ, that has no scores."""
        sc, pq = await asyncio.gather(
            self._ask(self.prompts.edit_question(instruction), [source, edited]),
            self._ask(self.prompts.quality, [edited]),
        )
        if not isinstance(sc, tuple):
            return sc
        if not isinstance(pq, tuple):
            return pq
        names = ("edit_success", "overedit", "naturalness", "no_artifacts")
        parts = dict(zip(names, sc + pq, strict=True))
        parts |= {"sc": min(sc), "pq": min(pq)}
        return Score(math.sqrt(parts["sc"] * parts["pq"]), parts)

    async def _ask(self, question: str, images: list[Image.Image]) -> tuple[float, ...] | Unparsable | Unavailable:
        answer = await self.judge.ask(question, images, _is_readable)
        if isinstance(answer, Unavailable):
            return answer
        return parse_scores(answer) or Unparsable(answer)
