"""Judges that misbehave on the wire: storms of errors, connections that break, bytes that trickle."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from raw_judge import GOOD, RawJudge, cut, trickle, whole

from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scorer import Scorer
from rl.reward.scores import Score, Unavailable, Unparsable
from rl.reward.viescore import VieScore, load_prompts


@pytest.fixture
def raw(stub: Any) -> Iterator[RawJudge]:
    yield RawJudge(stub)


def ask(judge: Judge) -> str | Unavailable:
    async def run() -> str | Unavailable:
        try:
            return await judge.ask("q", [], lambda text: "score" in text)
        finally:
            await judge.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("status", [b"200 OK", b"500 Internal Server Error"])
def test_a_connection_reset_in_the_body_is_tried_again(raw, status) -> None:
    """Guards: an exception of the transport that the client does not wrap, in the middle of a step."""
    raw.reply = cut(status)
    judge = Judge(JudgeConfig(raw.url, attempts=3))
    outcome = ask(judge)
    assert isinstance(outcome, Unavailable) and not outcome.refused
    assert raw.asked == 3 and judge.counters.retries == 2


def test_a_reset_once_costs_nothing(raw) -> None:
    """Guards: an error without a try, where the next one would have been right."""
    replies = [cut(b"200 OK"), whole(GOOD)]

    async def reply(writer: asyncio.StreamWriter) -> None:
        await replies.pop(0)(writer)

    raw.reply = reply
    assert '"score": [9, 4]' in str(ask(Judge(JudgeConfig(raw.url))))


def test_a_trickle_ends_at_the_deadline(raw) -> None:
    """Guards: a slot that is held as long as a byte comes now and then."""
    raw.reply = trickle
    outcome = ask(Judge(JudgeConfig(raw.url, deadline=1.5)))
    assert isinstance(outcome, Unavailable) and "1.5 s" in outcome.reason
    assert raw.asked == 1


WRONG = [
    "",
    "I like it",
    '{"score": [11, 3]}',
    '{"score": ["nine", 3]}',
    '{"score": [9]}',
    '{"score": [NaN, 1]}',
    "[9, 4, 1]",
]


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_invents_no_score(stub, image, seed) -> None:
    """Half of the replies are 429, 500, proxy pages or wrong answers, by question and try. Guards: any number that the
    judge did not give, and outcomes that get lost on the way: 40 rollouts in, 40 outcomes out, each right or none."""
    tries: Counter[str] = Counter()

    async def stormy(body: dict[str, Any]) -> web.Response:
        question = json.dumps(body["messages"])
        tries[question] += 1
        chance = random.Random(f"{seed} {tries[question]} {question}")
        kind = chance.choice(["good"] * 5 + ["429", "500", "page", "wrong", "wrong"])
        match kind:
            case "good":
                return web.Response(text=GOOD, content_type="application/json")
            case "page":
                return web.Response(text="<html>504</html>", content_type="text/html")
            case "wrong":
                answer = chance.choice(WRONG)
                return web.json_response({"choices": [{"message": {"content": answer}}]})
            case status:
                return web.Response(status=int(status))

    stub.reply = stormy
    judge = Judge(JudgeConfig(stub.url, attempts=3, reasks=1), ReplyCache())
    with Scorer(VieScore(judge, load_prompts())) as scorer:
        futures = [scorer.submit("do", image(0), image(i)) for i in range(1, 41)]
        outcomes = [future.result(300) for future in futures]
        counters = scorer.counters()
    assert all(not isinstance(outcome, Score) or outcome.value == 4 for outcome in outcomes)
    assert {type(outcome) for outcome in outcomes} == {Score, Unparsable, Unavailable}
    assert counters["asks"] == 80 == counters["answered"] + counters["unparsable"] + counters["unavailable"]
    assert tries.total() == 80 + counters["retries"] + counters["reasks"]
