"""Judges that misbehave on the wire: storms of errors, connections that break, bytes that trickle."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scorer import Scorer
from rl.reward.scores import Score, Unavailable, Unparsable
from rl.reward.viescore import VieScore, load_prompts

GOOD = json.dumps({"choices": [{"message": {"content": json.dumps({"reasoning": "so", "score": [9, 4]})}}]})
HEAD = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"

RawReply = Callable[[asyncio.StreamWriter], Awaitable[None]]


class RawJudge:
    """A server that writes its replies byte by byte, for what aiohttp would not do; the models are in order."""

    def __init__(self, stub: Any) -> None:
        self.reply: RawReply = cut(b"200 OK")
        self.asked = 0
        self._stub = stub
        self.url = asyncio.run_coroutine_threadsafe(self._start(), stub.loop).result(10)

    async def _start(self) -> str:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            await whole(json.dumps({"data": [{"id": "stub"}]}))(writer)
        else:
            self.asked += 1
            await self.reply(writer)
        writer.close()


def whole(text: str) -> RawReply:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (b"200 OK", len(text)) + text.encode())
        await writer.drain()

    return reply


def cut(status: bytes) -> RawReply:
    """Half of a body, and then the connection is reset."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (status, len(GOOD)) + GOOD[:20].encode())
        await writer.drain()
        writer.transport.abort()

    return reply


async def trickle(writer: asyncio.StreamWriter) -> None:
    """A byte now and then, which keeps every timeout between two bytes from ending it."""
    writer.write(HEAD % (b"200 OK", 10**6))
    for _ in range(600):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


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
    outcome = ask(Judge(JudgeConfig(raw.url, deadline=0.4)))
    assert isinstance(outcome, Unavailable) and "0.4 s" in outcome.reason
    assert raw.asked == 1


WRONG = [
    "",
    "I like it",
    '{"score": [11, 3]}',
    '{"score": ["nine", 3]}',
    '{"score": [9]}',
    '{"score": [NaN, 1]}',
    "[9, 4]",
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
        outcomes = [future.result(60) for future in futures]
        counters = scorer.counters()
    assert all(not isinstance(outcome, Score) or outcome.value == 4 for outcome in outcomes)
    assert {type(outcome) for outcome in outcomes} == {Score, Unparsable, Unavailable}
    assert counters["asks"] == 80 == counters["answered"] + counters["unparsable"] + counters["unavailable"]
    assert tries.total() == 80 + counters["retries"] + counters["reasks"]
