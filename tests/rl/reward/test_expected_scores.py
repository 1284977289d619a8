"""Scores as expectations: what is asked, what is read, and what is not taken for a score."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Outcome, Score, Unavailable, Unparsable
from rl.reward.viescore import ExpectedVieScore, GroundScore, expected_score


def likeliest(**tokens: float) -> list[dict[str, Any]]:
    """Tokens by probability, as the protocol lists them."""
    return [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in tokens.items()]


def probabilities(tops: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": [{"token": "x", "logprob": -0.1, "top_logprobs": tops}]}


def saying(logprobs: Any) -> Any:
    async def reply(body: dict[str, Any]) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "x"}, "logprobs": logprobs}]})

    return reply


def part(judge: Judge) -> Any:
    async def run() -> Any:
        try:
            return await expected_score(judge, "q", [])
        finally:
            await judge.aclose()

    return asyncio.run(run())


def test_one_token_is_asked_for_with_its_probabilities(stub) -> None:
    """Guards: 1,400 tokens for each score; a temperature that sharpens what a server reports; a useless repetition."""
    stub.reply = saying(probabilities(likeliest(I=0.9, **{"7": 0.1})))
    outcome = part(Judge(JudgeConfig(stub.url, temperature=0.0, max_tokens=1400, reasks=2)))
    assert isinstance(outcome, Unparsable) and '"7"' in outcome.reply
    (body,) = stub.bodies
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (1, 1.0, True, 20)


def test_the_cache_keeps_the_probabilities(stub, tmp_path: Path) -> None:
    """Guards: a cache that holds a drawn digit, or that serves an answer in words to the same question."""
    stub.reply = saying(probabilities(likeliest(**{"3": 0.75, "6": 0.25})))
    path = tmp_path / "answers.jsonl"
    for _ in range(2):
        with ReplyCache(path) as cache:
            assert part(Judge(JudgeConfig(stub.url), cache)) == pytest.approx(10 / 9 * 3.75)
    assert len(stub.bodies) == 1
    kept = json.loads(json.loads(path.read_text())["answer"])
    assert kept == [["3", pytest.approx(math.log(0.75))], ["6", pytest.approx(math.log(0.25))]]

    async def in_words(judge: Judge) -> str | Unavailable:
        answer = await judge.ask("q", [])
        await judge.aclose()
        return answer

    with ReplyCache(path) as cache:
        assert asyncio.run(in_words(Judge(JudgeConfig(stub.url), cache))) == "x"


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}])
def test_a_server_without_probabilities_is_a_refusal(stub, logprobs) -> None:
    """Guards: minutes of retries and pauses for what will never come; a 0."""
    stub.reply = saying(logprobs)
    outcome = part(Judge(JudgeConfig(stub.url)))
    assert isinstance(outcome, Unavailable) and outcome.refused and "logprobs" in outcome.reason
    assert len(stub.bodies) == 1


@pytest.mark.parametrize(
    "logprobs",
    [
        {"content": [{"token": "7"}]},
        {"content": [{"top_logprobs": [{"token": "7", "logprob": "high"}]}]},
        {"content": [{"top_logprobs": [{"token": 7, "logprob": -0.1}]}]},
        {"content": [{"top_logprobs": [{"token": "7", "logprob": float("nan")}]}]},
    ],
)
def test_probabilities_that_are_none_are_no_answer(stub, logprobs) -> None:
    """Guards: NaN as a reward, a traceback in the scorer's thread."""
    stub.reply = saying(logprobs)
    outcome = part(Judge(JudgeConfig(stub.url, attempts=2)))
    assert isinstance(outcome, Unavailable) and not outcome.refused
    assert len(stub.bodies) == 2


def test_a_model_that_says_nothing_is_unparsable(stub) -> None:
    stub.reply = saying({"content": []})
    assert part(Judge(JudgeConfig(stub.url))) == Unparsable("[]")


def test_four_questions_make_an_expected_viescore(stub, image) -> None:
    """Guards: swapped parts; an instruction in the questions about quality, or none in those about the edit."""
    digits = {"success": "8", "restraint": "6", "naturalness": "9", "artifacts": "4"}

    async def reply(body: dict[str, Any]) -> web.Response:
        text, *images = body["messages"][0]["content"]
        (name,) = [line[7:] for line in text["text"].splitlines() if line.startswith("Grade: ")]
        about_edit = name in ("success", "restraint")
        assert ("Editing instruction: add a hat" in text["text"].splitlines()) == about_edit
        assert len(images) == (2 if about_edit else 1)
        return await saying(probabilities(likeliest(**{digits[name]: 1.0})))(body)

    stub.reply = reply
    outcome = score(ExpectedVieScore(Judge(JudgeConfig(stub.url))), image)
    names = ["edit_success", "overedit", "naturalness", "no_artifacts", "sc", "pq"]
    assert isinstance(outcome, Score)
    assert outcome.parts == pytest.approx(dict(zip(names, [80 / 9, 60 / 9, 10, 40 / 9, 60 / 9, 40 / 9], strict=True)))
    assert outcome.value == pytest.approx(math.sqrt(60 / 9 * 40 / 9))


def test_one_missing_part_leaves_no_score(stub, image) -> None:
    async def reply(body: dict[str, Any]) -> web.Response:
        lost = "Grade: artifacts" in body["messages"][0]["content"][0]["text"]
        return await saying(probabilities(likeliest(**({"no": 1.0} if lost else {"9": 1.0}))))(body)

    stub.reply = reply
    assert isinstance(score(ExpectedVieScore(Judge(JudgeConfig(stub.url))), image), Unparsable)


def test_expected_agreement(stub, image) -> None:
    stub.reply = saying(probabilities(likeliest(**{"2": 0.5, "7": 0.5})))
    outcome = score(GroundScore(Judge(JudgeConfig(stub.url)), expected=True), image)
    assert outcome == Score(pytest.approx(5.0), {"agreement": pytest.approx(5.0)})
    assert stub.bodies[0]["max_tokens"] == 1


def score(metric: Any, image: Any) -> Outcome:
    async def run() -> Outcome:
        try:
            return await metric.score("add a\nhat", image(0), image(1), image(2))
        finally:
            await metric.judge.aclose()

    return asyncio.run(run())
