"""What the world's judges answer: which marks a question asks for, and how they are said.

A question is recognised by its pictures and by lines of its text. `Editing instruction: ...` stands in every question
about an edit. With a line `Grade: NAME` it asks for one mark (success and restraint of source and edit, naturalness
and artifacts of a picture alone, agreement of the data's edit and the one to be marked); without such a line for the
two of an edit (two pictures) or of a picture's quality (one). The answer is a JSON object with "reasoning" and "score",
or, to a request for the probabilities of tokens, a single digit from 0 to 9. These judges are sure of themselves, but a
mark from 0 to 10 lies between two digits: these get the probabilities whose mean is 0.9 of the mark.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from rl.reward.cache import image_of
from shapes.any_picture import mark_agreement, mark_edit, mark_quality
from shapes.verifier import Mark, Marks, judge_agreement, judge_edit, judge_quality

_INSTRUCTION = re.compile(r"^Editing instruction: (.+)$", re.MULTILINE)
_GRADE = re.compile(r"^Grade: (.+)$", re.MULTILINE)


class BadQuestion(ValueError):
    """A request that a judge cannot answer."""


@dataclass(frozen=True)
class Grader:
    """Who answers: `edit` marks (instruction, source, edited) or raises ValueError, `quality` a picture alone,
    `agreement` (the data's edit, edited)."""

    model: str
    edit: Callable[[str, Image.Image, Image.Image], Marks]
    quality: Callable[[Image.Image], Marks]
    agreement: Callable[[Image.Image, Image.Image], Mark] = judge_agreement


VERIFIER = Grader("shapes-verifier", judge_edit, judge_quality)
ANY_PICTURE = Grader("pixel-statistics-no-judgement", mark_edit, mark_quality, mark_agreement)


def choice(grader: Grader, question: dict[str, Any]) -> dict[str, Any]:
    """The choice of a chat completion that answers `question`, the body of a request. Raises BadQuestion."""
    text, pictures = _contents(question["messages"])
    marks, reason = _marks(grader, text, pictures)
    if not question.get("logprobs"):
        said = json.dumps({"reasoning": reason, "score": marks})
        return {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    if len(marks) != 1:
        raise BadQuestion("probabilities of a token are for a question with a line 'Grade: ...'")
    likeliest = _digits(marks[0])
    token = {**likeliest[0], "top_logprobs": likeliest[: question.get("top_logprobs", 0)]}
    return {
        "index": 0,
        "message": {"role": "assistant", "content": token["token"]},
        "logprobs": {"content": [token]},
        "finish_reason": "length",
    }


def _digits(mark: int) -> list[dict[str, Any]]:
    """The digits that stand for a mark from 0 to 10, the more probable first."""
    above, below = math.modf(0.9 * mark)
    shares = [(1 - above, int(below)), (above, int(below) + 1)]
    return [
        {"token": str(digit), "logprob": math.log(share)} for share, digit in sorted(shares, reverse=True) if share > 0
    ]


def _marks(grader: Grader, text: str, pictures: list[Image.Image]) -> tuple[list[int], str]:
    """The marks that are asked for, and the reason."""
    grade = _GRADE.search(text)
    if grade is None:
        if len(pictures) not in (1, 2):
            raise BadQuestion(f"expected one or two pictures, got {len(pictures)}")
        both = grader.quality(*pictures) if len(pictures) == 1 else _edit_marks(grader, text, *pictures)
        return [both.first, both.second], both.reason
    match grade[1], len(pictures):
        case "success" | "restraint", 2:
            both = _edit_marks(grader, text, *pictures)
        case "naturalness" | "artifacts", 1:
            both = grader.quality(*pictures)
        case "agreement", 2:
            mark = grader.agreement(*pictures)
            return [mark.value], mark.reason
        case name, count:
            raise BadQuestion(f"no grade {name!r} of {count} pictures is given here")
    return [both.first if grade[1] in ("success", "naturalness") else both.second], both.reason


def _edit_marks(grader: Grader, text: str, source: Image.Image, edited: Image.Image) -> Marks:
    found = _INSTRUCTION.search(text)
    if found is None:
        raise BadQuestion("the question has no line 'Editing instruction: ...'")
    try:
        return grader.edit(found[1], source, edited)
    except ValueError as error:
        raise BadQuestion(str(error)) from None


def _contents(messages: list[dict[str, Any]]) -> tuple[str, list[Image.Image]]:
    texts: list[str] = []
    pictures: list[Image.Image] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
            continue
        for part in content:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image_url":
                pictures.append(_picture(part["image_url"]["url"]))
    return "\n".join(texts), pictures


@lru_cache(maxsize=256)
def _picture(url: str) -> Image.Image:
    """The picture in a data URL; the source of a group of rollouts is decoded once."""
    try:
        return image_of(url)
    except ValueError as error:
        raise BadQuestion(str(error)) from None
