"""The judge client against a server that is good, late, broken, busy, wrong or absent."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import re
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image, JpegImagePlugin
from stub_judge import with_judge

from emu3.errors import UserError
from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Unavailable

REFUSED = "http://127.0.0.1:9/v1"


def status(code: int, headers: dict[str, str] | None = None, text: str = "no") -> Callable[..., Awaitable[Any]]:
    async def reply(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": text}}, status=code, headers=headers)

    return reply


def after(first: Any, then: Any) -> Callable[..., Awaitable[Any]]:
    replies = [first]

    async def reply(body: dict[str, Any]) -> Any:
        return await (replies.pop() if replies else then)(body)

    return reply


async def hang(body: dict[str, Any]) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


def test_question_and_images_arrive_unharmed(stub, say, image):
    """Guards: a lossy or reordered image, a missing setting, an image sent as text."""
    stub.reply = say("yes")
    source, edited = image(0), image(1)
    judge = Judge(JudgeConfig(stub.url, seed=5, max_tokens=77, temperature=0.5))
    assert with_judge(judge, lambda j: j.ask("same?", [source, edited])) == "yes"
    (body,) = stub.bodies
    assert (body["model"], body["seed"], body["max_tokens"], body["temperature"]) == ("stub", 5, 77, 0.5)
    text, *parts = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "same?"}
    for part, image in zip(parts, [source, edited], strict=True):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), np.asarray(image))


def test_jpeg_and_unset_temperature_as_published(stub, say, image):
    """Guards: the published setting cannot be reproduced; an RGBA image breaks JPEG."""
    judge = Judge(JudgeConfig(stub.url, image_format="jpeg", temperature=None))
    with_judge(judge, lambda j: j.ask("q", [image(0).convert("RGBA")]))
    assert "temperature" not in stub.bodies[0]
    head, _, data = stub.bodies[0]["messages"][0]["content"][1]["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    quality_75, half_each_way = [16, 11, 10, 16, 24, 40], 2  # the standard's table at half strength; 4:2:0
    assert [2 * step for step in sent.quantization[0][:6]] == pytest.approx(quality_75, abs=1)
    assert JpegImagePlugin.get_sampling(sent) == half_each_way


def test_late_answer_is_no_answer(stub):
    """Guards: a hanging judge holds the trainer for the client's default of ten minutes."""
    stub.reply = hang
    start = time.monotonic()
    outcome = with_judge(Judge(JudgeConfig(stub.url, deadline=0.3)), lambda j: j.ask("q", []))
    assert time.monotonic() - start < 30
    assert isinstance(outcome, Unavailable) and "0.3 s" in outcome.reason


def test_busy_server_sets_the_pause(stub, say):
    """Guards: Retry-After ignored, so that a busy judge is hammered."""
    stub.reply = after(status(429, {"Retry-After": "0.4"}), say("yes"))
    judge = Judge(JudgeConfig(stub.url))
    assert with_judge(judge, lambda j: j.ask("q", [])) == "yes"
    assert stub.times[1] - stub.times[0] >= 0.39
    assert judge.counters.retries == 1


def test_retry_after_as_a_date(stub, say):
    """Guards: the header's other form crashes the client or is taken for zero."""

    async def busy(body: dict[str, Any]) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": formatdate(time.time() + 2, usegmt=True)})

    stub.reply = after(busy, say("yes"))
    assert with_judge(Judge(JudgeConfig(stub.url)), lambda j: j.ask("q", [])) == "yes"
    assert stub.times[1] - stub.times[0] >= 0.5


def test_pause_beyond_the_deadline_is_not_waited_for(stub):
    """Guards: a slot blocked by a pause that can only end in a timeout."""
    stub.reply = status(429, {"Retry-After": "3600"})
    start = time.monotonic()
    outcome = with_judge(Judge(JudgeConfig(stub.url, deadline=300)), lambda j: j.ask("q", []))
    assert isinstance(outcome, Unavailable) and "429" in outcome.reason
    assert time.monotonic() - start < 100 and len(stub.bodies) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_failure_that_may_pass_is_retried_so_often(stub, code):
    """Guards: endless retries, or a first hiccup that costs a rollout."""
    stub.reply = status(code)
    judge = Judge(JudgeConfig(stub.url, attempts=3))
    outcome = with_judge(judge, lambda j: j.ask("q", []))
    assert isinstance(outcome, Unavailable) and str(code) in outcome.reason
    assert len(stub.bodies) == 3
    assert (judge.counters.retries, judge.counters.unavailable, judge.counters.answered) == (2, 1, 0)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [({"prompt_tokens": 700, "completion_tokens": 20}, (700, 20)), (None, (0, 0)), ({"prompt_tokens": "many"}, (0, 0))],
)
def test_tokens_are_counted_where_they_are_reported(stub, usage, counted):
    """What an evaluation cost; a server that tells nothing, or nonsense, must not break the asking."""

    async def reply(_):
        return web.json_response({"choices": [{"message": {"content": "7"}}], "usage": usage})

    stub.reply = reply
    judge = Judge(JudgeConfig(stub.url))
    assert with_judge(judge, lambda j: j.ask("q", [])) == "7"
    assert (judge.counters.prompt_tokens, judge.counters.completion_tokens) == counted


@pytest.mark.parametrize("code", [400, 401, 404, 413, 422])
def test_mistake_of_ours_is_not_retried(stub, code):
    """Guards: minutes of back-off on a wrong key or an image that is too large."""
    stub.reply = status(code, text="because of this")
    outcome = with_judge(Judge(JudgeConfig(stub.url)), lambda j: j.ask("q", []))
    assert isinstance(outcome, Unavailable) and outcome.refused
    assert outcome.reason.startswith(f"HTTP {code}: ") and "because of this" in outcome.reason
    assert "Error code" not in outcome.reason  # the client's own words for the number said already
    assert len(stub.bodies) == 1


@pytest.mark.parametrize(
    "body", ["{nope", "<html>", "[]", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}']
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_reply_that_is_no_completion(stub, body, content_type):
    """Guards: a proxy's error page with status 200 becomes an exception in the trainer, or an answer."""

    async def broken(_: dict[str, Any]) -> web.Response:
        return web.Response(text=body, content_type=content_type)

    stub.reply = broken
    outcome = with_judge(Judge(JudgeConfig(stub.url, attempts=2)), lambda j: j.ask("q", []))
    assert isinstance(outcome, Unavailable) and len(stub.bodies) == 2


def test_connection_that_breaks_is_tried_again(stub, say):
    """Guards: a server that restarts costs every rollout in flight."""

    async def drop(body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        raise ConnectionResetError(response)

    stub.reply = after(drop, say("yes"))
    assert with_judge(Judge(JudgeConfig(stub.url)), lambda j: j.ask("q", [])) == "yes"


def test_refused_answer_is_empty_not_none(stub, say):
    """Guards: content null (a model's refusal) crashes the parser."""
    stub.reply = say(None)
    assert with_judge(Judge(JudgeConfig(stub.url, reasks=0)), lambda j: j.ask("q", [])) == ""


def test_useless_answer_is_asked_for_again_with_another_seed(stub, say):
    """Guards: the same request repeated to a deterministic server, which repeats itself."""
    stub.reply = say("what?", "hm", "42")
    judge = Judge(JudgeConfig(stub.url, seed=7, temperature=0.0))
    assert with_judge(judge, lambda j: j.ask("q", [], accept=str.isdigit)) == "42"
    assert [body["seed"] for body in stub.bodies] == [7, 8, 9]
    assert [body["temperature"] > 0 for body in stub.bodies] == [False, True, True]
    assert (judge.counters.reasks, judge.counters.answered, judge.counters.unparsable) == (2, 1, 0)


def test_reasks_are_bounded_and_under_one_deadline(stub):
    """Guards: each re-ask gets a fresh deadline, so that a slow babbler blocks a slot for ever."""

    async def slow(body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0.2)
        return web.json_response({"choices": [{"message": {"content": "hm"}}]})

    stub.reply = slow
    judge = Judge(JudgeConfig(stub.url, reasks=2))
    assert with_judge(judge, lambda j: j.ask("q", [], accept=str.isdigit)) == "hm"
    assert len(stub.bodies) == 3 and judge.counters.unparsable == 1
    outcome = with_judge(
        Judge(JudgeConfig(stub.url, reasks=50, deadline=0.5)), lambda j: j.ask("q", [], accept=str.isdigit)
    )
    assert isinstance(outcome, Unavailable) and len(stub.bodies) <= 3 + 3


def test_equal_questions_are_sent_once(stub, say, image):
    """Guards: eight equal rollouts cost eight judgements; equal pixels in another object count as new."""
    stub.reply = say("yes")
    judge = Judge(JudgeConfig(stub.url), ReplyCache())

    async def use(j: Judge) -> list[str | Unavailable]:
        await j.model_name()
        together = await asyncio.gather(*(j.ask("q", [image(0)]) for _ in range(8)))
        return [*together, await j.ask("q", [image(0)])]

    assert with_judge(judge, use) == ["yes"] * 9
    assert len(stub.bodies) == 1
    counters = judge.counters
    assert (counters.asks, counters.shared, counters.cache_hits, counters.answered) == (9, 7, 1, 1)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"temperature": 0.3}, {"max_tokens": 10}, {"image_format": "jpeg"}, {"model": "other"}]
)
def test_other_settings_are_another_question(stub, change):
    """Guards: a cache that serves one judge's answers as another's."""
    stub.models = ["stub", "other"]
    cache = ReplyCache()
    for settings in ({"model": "stub"}, {"model": "stub"} | change):
        with_judge(Judge(JudgeConfig(stub.url, **settings), cache), lambda j: j.ask("q", []))
    assert len(stub.bodies) == 2


def test_same_bytes_in_another_shape_are_another_image(stub):
    """Guards: a digest over the pixels without the size."""
    tall, wide = Image.new("RGB", (2, 8)), Image.new("RGB", (8, 2))

    async def use(j: Judge) -> None:
        await j.ask("q", [tall])
        await j.ask("q", [wide])
        await j.ask("q", [wide, tall])
        await j.ask("q", [tall, wide])

    with_judge(Judge(JudgeConfig(stub.url), ReplyCache()), use)
    assert len(stub.bodies) == 4


def test_only_usable_answers_are_kept(stub, say):
    """Guards: one bad answer, or an outage, remembered for all later runs."""
    cache = ReplyCache()
    for reply in (say("hm"), status(400), say("42")):
        stub.reply = reply
        with_judge(Judge(JudgeConfig(stub.url, reasks=0), cache), lambda j: j.ask("q", [], accept=str.isdigit))
    assert len(stub.bodies) == 3 and len(cache) == 1


def test_requests_in_flight_are_bounded(stub):
    """Guards: 256 sockets at once against a server that takes 4."""

    async def slow(body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0.02)
        return web.json_response({"choices": [{"message": {"content": "yes"}}]})

    stub.reply = slow

    async def use(j: Judge) -> None:
        await asyncio.gather(*(j.ask(f"q{i}", []) for i in range(20)))

    with_judge(Judge(JudgeConfig(stub.url, concurrency=4)), use)
    assert stub.most_at_once == 4


def test_one_caller_that_gives_up_does_not_take_the_answer_from_another(stub):
    """Guards: cancelling the first of two that share a request."""

    async def slow(body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0.2)
        return web.json_response({"choices": [{"message": {"content": "yes"}}]})

    stub.reply = slow

    async def use(j: Judge) -> str | Unavailable:
        first, second = asyncio.create_task(j.ask("q", [])), asyncio.create_task(j.ask("q", []))
        await asyncio.sleep(0.1)
        first.cancel()
        return await second

    assert with_judge(Judge(JudgeConfig(stub.url)), use) == "yes"


def test_judge_that_dies_during_a_run(stub):
    """Guards: an exception instead of an outcome once the server is gone."""

    async def use(j: Judge) -> str | Unavailable:
        await j.model_name()
        await asyncio.to_thread(stub.close)
        return await j.ask("q", [])

    outcome = with_judge(Judge(JudgeConfig(stub.url, attempts=2)), use)
    assert isinstance(outcome, Unavailable) and f"127.0.0.1:{stub.port}" in outcome.reason


def test_dead_judge_at_the_start_names_the_address():
    """Guards: hours of polling, a traceback."""
    with pytest.raises(UserError) as caught:
        with_judge(Judge(JudgeConfig(REFUSED, attempts=2)), lambda j: j.model_name())
    assert REFUSED in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:4877/v1", "ftp://judge/v1", "http:///v1", "http://judge:port/v1", "http://judge:99999/v1",
     "http://[judge/v1", "http://user:p@ss@judge:port/v1", "http://judge/v1,", "http://judge/v1,other:4877/v1",
     "http://user:p@ss@judge/v1", "http://user:p@ss,word@judge/v1"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_at_once(url):
    """Guards: a traceback from the depths of the HTTP client, or a wait for a server that cannot be there."""
    with pytest.raises(UserError, match=r"expected http://HOST:PORT/v1") as caught:
        Judge(JudgeConfig(url))
    assert not re.search("p@ss|ss@judge|ss,word", str(caught.value))


def test_choice_of_the_model(stub):
    """Guards: a silent pick among several, a wrong name that only shows as 404 in every reward."""
    assert with_judge(Judge(JudgeConfig(stub.url)), lambda j: j.model_name()) == "stub"
    stub.models = ["a", "b"]
    assert with_judge(Judge(JudgeConfig(stub.url, "b")), lambda j: j.model_name()) == "b"
    with pytest.raises(UserError, match="a, b"):
        with_judge(Judge(JudgeConfig(stub.url)), lambda j: j.model_name())
    with pytest.raises(UserError, match="no model c"):
        with_judge(Judge(JudgeConfig(stub.url, "c")), lambda j: j.model_name())


def test_key_is_sent_and_never_shown(stub, monkeypatch, caplog, tmp_path: Path):
    """Guards: servers that quote the key in their error; debug logs; the cache file."""
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    caplog.set_level(logging.DEBUG)

    async def quote(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": f"bad key {key}" + "." * 280 + key}}, status=401)

    stub.reply = quote
    with ReplyCache(tmp_path / "answers.jsonl") as cache:
        outcome = with_judge(Judge(JudgeConfig(stub.url), cache), lambda j: j.ask("q", []))
    assert stub.keys == [f"Bearer {key}"]
    assert isinstance(outcome, Unavailable) and "bad key [key]" in outcome.reason
    assert "sk-very" not in outcome.reason + caplog.text
    assert not (tmp_path / "answers.jsonl").exists()
