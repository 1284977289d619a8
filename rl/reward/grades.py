"""Single grades, 0 to 10, from a judge: as it writes them, or as it would on average.

A written grade is whatever the model decides on after its reasons; equal grades within a group are frequent, and such
groups teach nothing. An expected grade is asked for as one digit from 0 to 9 and is the mean digit under the
probabilities that the model gives to them, times 10/9. It costs one token, and hardly two pictures get the same. The
scale ends at 9 because a digit is one token in every common vocabulary where "10" is one or two, and all ten digits fit
among the likeliest tokens that a server reports. It is another reward than the written one: the model gives no reasons
before it, and it moves where the grade that would be written does not.
"""

from __future__ import annotations

import json
import math

from PIL import Image

from rl.reward.answers import parse_scores
from rl.reward.judge import Judge
from rl.reward.outcome import Grade, Unavailable, Unparsable

# The digits' probabilities together. Below, the model is about to say something else, and the digits that it did not
# mean would be scaled up to a grade.
LEAST_MASS = 0.5


async def written_grades(judge: Judge, question: str, images: list[Image.Image], count: int) -> tuple[Grade, ...]:
    """The `count` grades of the answer to `question`; one failure where they are missing."""
    answer = await judge.ask(question, images, lambda text: parse_scores(text, count) is not None)
    if isinstance(answer, Unavailable):
        return (answer,)
    return parse_scores(answer, count) or (Unparsable(answer),)


async def expected_grade(judge: Judge, question: str, images: list[Image.Image]) -> Grade:
    """The mean grade of the answer to `question`, which asks for a digit."""
    answer = await judge.ask_for_token(question, images, lambda likeliest: mean_grade(likeliest) is not None)
    if isinstance(answer, Unavailable):
        return answer
    grade = mean_grade(answer)
    return Unparsable(answer) if grade is None else grade


def mean_grade(likeliest: str) -> float | None:
    """10/9 of the mean digit under the digits' probabilities, these scaled to a sum of 1.

    likeliest: JSON list of [token, log-probability]. A token is a digit with or without white space around it. None
    where the digits have less than `LEAST_MASS` together.
    """
    mass = [0.0] * 10
    for token, logprob in json.loads(likeliest):
        digit = token.strip()
        if len(digit) == 1 and digit in "0123456789":
            mass[int(digit)] += math.exp(min(0.0, logprob))
    total = sum(mass)
    if total < LEAST_MASS:
        return None
    return 10 / 9 * sum(digit * share for digit, share in enumerate(mass)) / total
