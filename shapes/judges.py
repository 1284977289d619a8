"""What the world's judges reply: which scores a question asks for, and how they are written.

A question is recognised by its images and by lines of its text. `Editing instruction: ...` stands in every question
about an edit. With a line `Grade: NAME` it asks for one score (success and restraint of source and edit, naturalness
and artifacts of an image alone, agreement of the data's edit and the one to be scored); without such a line for the
two of an edit (two images) or of an image's quality (one). The reply is a JSON object with "reasoning" and "score",
or, to a request for the probabilities of tokens, a single digit from 0 to 9. These judges are sure of themselves, but a
score from 0 to 10 lies between two digits: these get the probabilities whose mean is 0.9 of the score.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from rl.reward.cache import image_of
from shapes.any_image import score_agreement, score_edit, score_quality
from shapes.verifier import Verdict, judge_agreement, judge_edit, judge_quality

_INSTRUCTION = re.compile(r"^Editing instruction: (.+)$", re.MULTILINE)
_SCORE_NAME = re.compile(r"^Grade: (.+)$", re.MULTILINE)


class BadQuestion(ValueError):
    """A request that a judge cannot answer."""


@dataclass(frozen=True)
class WorldJudge:
    """Who replies: `edit` scores (instruction, source, edited) or raises ValueError, `quality` an image alone,
    `agreement` (the data's edit, edited, instruction or nothing)."""

    model: str
    edit: Callable[[str, Image.Image, Image.Image], Verdict]
    quality: Callable[[Image.Image], Verdict]
    agreement: Callable[[Image.Image, Image.Image, str], Verdict] = judge_agreement


VERIFIER = WorldJudge("shapes-verifier", judge_edit, judge_quality)
ANY_IMAGE = WorldJudge(
    "pixel-statistics-no-judgement",
    score_edit,
    score_quality,
    lambda target, edited, _: score_agreement(target, edited),
)


def weakened(judge: WorldJudge, levels: int | None = None, noise: float = 0.0, bias: float = 0.0) -> WorldJudge:
    """A judge with a small vision-language model's weaknesses and a name that tells them; `judge` itself without any.

    bias: points from 0 to 10. It mirrors that a small model hardly sees whether a thing was done and believes what it
    is told where the image looks like the source: edit success is at least `bias` times the share of restraint
    (overedit / 10), so an unchanged image gets `bias`, and doing nothing is safer than trying.
    noise: standard deviation in points of a normal error on each score, drawn from a digest of the question, so the
    same question has the same score. levels: to how many equal levels from 0 to 10 scores are rounded last, 2 to 11.
    """
    marks = {"coarse": levels or 0, "noise": noise, "bias": bias}
    name = "-".join(f"{mark}{value:g}" for mark, value in marks.items() if value)
    if not name:
        return judge

    def blurred(verdict: Verdict, *question: str | Image.Image) -> Verdict:
        digest = hashlib.sha256()
        for part in question:
            data = part.encode() if isinstance(part, str) else repr((part.mode, part.size)).encode() + part.tobytes()
            digest.update(len(data).to_bytes(8) + data)
        errors = np.random.default_rng(list(digest.digest())).normal(0.0, noise, len(verdict.scores))
        scores = np.clip(np.array(verdict.scores) + errors, 0, 10)
        if levels:
            scores = np.rint(scores / 10 * (levels - 1)) * 10 / (levels - 1)
        return Verdict(tuple(int(score) for score in np.rint(scores)), verdict.reason)

    def edit(instruction: str, source: Image.Image, edited: Image.Image) -> Verdict:
        verdict = judge.edit(instruction, source, edited)
        success, restraint = verdict.scores
        verdict = Verdict((max(success, round(bias * restraint / 10)), restraint), verdict.reason)
        return blurred(verdict, instruction, source, edited)

    return WorldJudge(
        f"{judge.model}-{name}",
        edit,
        lambda edited: blurred(judge.quality(edited), edited),
        lambda target, edited, words: blurred(judge.agreement(target, edited, words), target, edited, words),
    )


def choice(judge: WorldJudge, question: dict[str, Any]) -> dict[str, Any]:
    """The choice of a chat completion that answers `question`, the body of a request. Raises BadQuestion."""
    text, images = _contents(question["messages"])
    verdict = _verdict(judge, text, images)
    if not question.get("logprobs"):
        content = json.dumps({"reasoning": verdict.reason, "score": verdict.scores})
        return {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    if len(verdict.scores) != 1:
        raise BadQuestion("probabilities of a token are for a question with a line 'Grade: ...'")
    likeliest = _digits(verdict.scores[0])
    token = {**likeliest[0], "top_logprobs": likeliest[: question.get("top_logprobs", 0)]}
    return {
        "index": 0,
        "message": {"role": "assistant", "content": token["token"]},
        "logprobs": {"content": [token]},
        "finish_reason": "length",
    }


def _digits(score: int) -> list[dict[str, Any]]:
    """The digits that stand for a score from 0 to 10, the more probable first."""
    above, below = math.modf(0.9 * score)
    shares = [(1 - above, int(below)), (above, int(below) + 1)]
    return [
        {"token": str(digit), "logprob": math.log(share)} for share, digit in sorted(shares, reverse=True) if share > 0
    ]


def _verdict(judge: WorldJudge, text: str, images: list[Image.Image]) -> Verdict:
    """The scores that are asked for, and the reason."""
    found = _SCORE_NAME.search(text)
    if found is None:
        if len(images) not in (1, 2):
            raise BadQuestion(f"expected one or two images, got {len(images)}")
        return judge.quality(*images) if len(images) == 1 else _edit_verdict(judge, text, *images)
    match found[1], len(images):
        case "success" | "restraint", 2:
            both = _edit_verdict(judge, text, *images)
        case "naturalness" | "artifacts", 1:
            both = judge.quality(*images)
        case "agreement", 2:
            words = _INSTRUCTION.search(text)
            target, edited = images
            return judge.agreement(target, edited, words[1] if words else "")
        case name, count:
            raise BadQuestion(f"no grade {name!r} of {count} images is given here")
    return Verdict((both.scores[found[1] in ("restraint", "artifacts")],), both.reason)


def _edit_verdict(judge: WorldJudge, text: str, source: Image.Image, edited: Image.Image) -> Verdict:
    found = _INSTRUCTION.search(text)
    if found is None:
        raise BadQuestion("the question has no line 'Editing instruction: ...'")
    try:
        return judge.edit(found[1], source, edited)
    except ValueError as error:
        raise BadQuestion(str(error)) from None


def _contents(messages: list[dict[str, Any]]) -> tuple[str, list[Image.Image]]:
    texts: list[str] = []
    images: list[Image.Image] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
            continue
        for part in content:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image_url":
                images.append(_image(part["image_url"]["url"]))
    return "\n".join(texts), images


@lru_cache(maxsize=256)
def _image(url: str) -> Image.Image:
    """The image in a data URL; the source of a group of rollouts is decoded once."""
    try:
        return image_of(url)
    except ValueError as error:
        raise BadQuestion(str(error)) from None
