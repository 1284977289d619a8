"""GroundScore: how far an edited picture shows what the data set's own edit shows.

The reward beside VIEScore in the paper's code, where it is off by default. The judge sees the instruction, the data
set's edit and the picture to be graded, in this order, and gives one grade for agreement in content, 0 to 10. It does
not see the source: the published server takes two pictures, and what was to be done is in the data set's edit. So the
score is worth what the data's edits are worth; where these change more than the instruction says, it rewards
that. Ours is the wording, and the sampling settings are the judge's; the published ones are 1,300 tokens at
temperature 0.3.
"""

from __future__ import annotations

from PIL import Image

from rl.reward.grades import expected_grade, written_grades
from rl.reward.judge import Judge
from rl.reward.outcome import Failure, Outcome, Score
from rl.reward.prompts import load_question, with_instruction


class GroundScore:
    """Scores edited pictures by what `judge` says about them beside the data set's edit.

    expected: the grade is the mean one under the probabilities of its token (`grades.py`).
    """

    def __init__(self, judge: Judge, expected: bool = False) -> None:
        self.judge = judge
        self._expected = expected
        self._question = load_question("expected_agreement" if expected else "ground")

    async def score(
        self, instruction: str, source: Image.Image, edited: Image.Image, target: Image.Image | None = None
    ) -> Outcome:
        """`Score` with the part agreement, 0 to 10. `source` is not looked at. Raises ValueError without a target."""
        if target is None:
            raise ValueError("GroundScore needs the data set's edit")
        question, images = with_instruction(self._question, instruction), [target, edited]
        if self._expected:
            grade = await expected_grade(self.judge, question, images)
        else:
            (grade,) = await written_grades(self.judge, question, images, 1)
        return grade if isinstance(grade, Failure) else Score(grade, {"agreement": grade})
