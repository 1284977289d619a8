"""GroundScore and the weighted mean of metrics."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from rl.reward.groundscore import GroundScore
from rl.reward.judge import Judge
from rl.reward.metric import WeightedMean
from rl.reward.outcome import Outcome, Score, Unavailable, Unparsable
from rl.reward.prompts import load_prompts
from rl.reward.viescore import VieScore


def score(metric: Any, *pictures: Any) -> Outcome:
    async def run() -> Outcome:
        try:
            return await metric.score("add a\n hat", *pictures)
        finally:
            await metric.judge.aclose()

    return asyncio.run(run())


def by_question(ground: str, edit: str, quality: str) -> Any:
    async def reply(body: dict[str, Any]) -> web.Response:
        text, *pictures = body["messages"][0]["content"]
        answer = ground if "Grade: agreement" in text["text"] else edit if len(pictures) == 2 else quality
        status = 200 if answer else 500
        return web.json_response({"choices": [{"message": {"content": answer}}]}, status=status)

    return reply


def answer(*grades: float) -> str:
    return json.dumps({"reasoning": "so", "score": grades})


def pixels(part: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))))


def test_the_judge_sees_the_data_sets_edit_and_then_ours(stub, picture) -> None:
    """Guards: the source in the place of the data's edit, the two the wrong way round, no instruction."""
    stub.reply = by_question(answer(7), "", "")
    source, edited, target = picture(0), picture(1), picture(2)
    assert score(GroundScore(Judge(stub.url)), source, edited, target) == Score(7.0, {"agreement": 7.0})
    (body,) = stub.bodies
    text, *parts = body["messages"][0]["content"]
    assert "Editing instruction: add a hat" in text["text"].splitlines() and "<instruction>" not in text["text"]
    for part, image in zip(parts, [target, edited], strict=True):
        assert np.array_equal(pixels(part), np.asarray(image))


@pytest.mark.parametrize("bad", ["7", answer(7, 8), answer(), answer(11), '{"score": 7}', "<score>7</score>"])
def test_no_number_without_one_grade(stub, picture, bad) -> None:
    """Guards: a figure picked out of whatever the judge said."""
    stub.reply = by_question(bad, "", "")
    assert score(GroundScore(Judge(stub.url, reasks=0)), picture(0), picture(1), picture(2)) == Unparsable(bad)


def test_a_missing_target_is_a_bug(stub, picture) -> None:
    with pytest.raises(ValueError, match="the data set's edit"):
        score(GroundScore(Judge(stub.url)), picture(0), picture(1))


def mixed(judge: Judge, viescore: float = 1.0, groundscore: float = 3.0) -> WeightedMean:
    return WeightedMean(
        [("viescore", viescore, VieScore(judge, load_prompts())), ("groundscore", groundscore, GroundScore(judge))]
    )


def test_weights_are_shares(stub, picture) -> None:
    """Guards: a sum that leaves the scale of 0 to 10; a part that overwrites another's."""
    stub.reply = by_question(answer(8), answer(4, 9), answer(4, 9))
    outcome = score(mixed(Judge(stub.url)), picture(0), picture(1), picture(2))
    assert isinstance(outcome, Score) and outcome.value == pytest.approx((1 * 4 + 3 * 8) / 4)
    assert outcome.parts["viescore/value"] == outcome.parts["viescore/sc"] == 4
    assert outcome.parts["groundscore/value"] == outcome.parts["groundscore/agreement"] == 8
    full = score(mixed(Judge(stub.url), 0.2, 0.1), picture(0), picture(1), picture(2))
    assert isinstance(full, Score) and full.value == pytest.approx((2 * 4 + 8) / 3)


@pytest.mark.parametrize(
    ("ground", "edit", "expected"),
    [
        ("hm", answer(9, 9), Unparsable),
        ("", answer(9, 9), Unavailable),
        (answer(9), "hm", Unparsable),
        ("", "hm", Unavailable),
    ],
)
def test_without_one_part_there_is_no_score(stub, picture, ground, edit, expected) -> None:
    """Guards: a reward from what happens to be there, which would prefer rollouts whose judge failed. Of two failures
    the outage is told: it may end, and both are asked again then."""
    stub.reply = by_question(ground, edit, answer(9, 9))
    outcome = score(mixed(Judge(stub.url, attempts=1, reasks=0)), picture(0), picture(1), picture(2))
    assert isinstance(outcome, expected)
