"""VIEScore for edited pictures (Ku et al., 2024, "VIEScore: Towards Explainable Metrics for Conditional Image
Synthesis Evaluation"), the reward and the metric of the paper.

Two questions: SC shows the judge the instruction, the source and the edited picture and asks for edit success
and overediting; PQ shows the edited picture alone and asks for naturalness and artifacts. Every grade is 0 to
10, 10 being best. SC and PQ are the minima of their two grades, and the score is sqrt(SC * PQ).

`ExpectedVieScore` is that formula over expected grades (`grades.py`), with a question of its own for each. It is
not VIEScore, and its figures do not go into one table with it: the minimum of two means is not the mean of the minimum,
and the model grades without giving reasons first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from PIL import Image

from rl.reward.grades import expected_grade, written_grades
from rl.reward.judge import Judge
from rl.reward.outcome import Failure, Grade, Outcome, Score
from rl.reward.prompts import EditPrompts, load_question, with_instruction

NAMES = ("edit_success", "overedit", "naturalness", "no_artifacts")


def viescore(grades: Sequence[Grade]) -> Outcome:
    """`Score` with the parts `NAMES`, sc and pq, all 0 to 10; or the first of the grades that is none.

    grades: four in the order of `NAMES`; fewer where a failure stands for the two of one question.
    """
    parts: dict[str, float] = {}
    for name, grade in zip(NAMES, grades, strict=False):
        if isinstance(grade, Failure):
            return grade
        parts[name] = grade
    parts["sc"] = min(parts["edit_success"], parts["overedit"])
    parts["pq"] = min(parts["naturalness"], parts["no_artifacts"])
    return Score(math.sqrt(parts["sc"] * parts["pq"]), parts)


class VieScore:
    """Scores edited pictures by what `judge` answers to `prompts`."""

    def __init__(self, judge: Judge, prompts: EditPrompts) -> None:
        self.judge = judge
        self.prompts = prompts

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """As `viescore`. `target` is not looked at."""
        sc, pq = await asyncio.gather(
            written_grades(self.judge, self.prompts.edit_question(instruction), [source, edited], 2),
            written_grades(self.judge, self.prompts.quality, [edited], 2),
        )
        return viescore([*sc, *pq])


class ExpectedVieScore:
    """Scores edited pictures by how probable `judge` finds each grade: four questions, a token each."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._questions = [
            load_question(f"expected_{name}") for name in ("success", "restraint", "naturalness", "artifacts")
        ]

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """As `viescore`. `target` is not looked at."""
        success, restraint, naturalness, artifacts = self._questions
        grades = await asyncio.gather(
            expected_grade(self.judge, with_instruction(success, instruction), [source, edited]),
            expected_grade(self.judge, with_instruction(restraint, instruction), [source, edited]),
            expected_grade(self.judge, naturalness, [edited]),
            expected_grade(self.judge, artifacts, [edited]),
        )
        return viescore(grades)
