"""What servers of one protocol do differently: lists of models, addresses, fields, refusals; and keys in all of it."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from edge_replies import GOOD, KEY, ask
from stub_judge import with_judge

from emu3.errors import UserError
from rl.reward.cache import ReplyCache
from rl.reward.client import MOST_REFUSED, Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Unavailable


@pytest.mark.parametrize("status", [403, 404, 405, 501])
def test_a_named_model_needs_no_list_of_models(stub: Any, say: Any, status: int) -> None:
    """Guards: gateways without `/models`, whose judge could not be used though its name was given."""

    class Gone(web.HTTPException):
        status_code = status

    async def gone() -> None:
        raise Gone

    stub.before_models = gone
    stub.reply = say(GOOD)
    assert ask(stub.url, model="anything") == GOOD
    assert stub.bodies[0]["model"] == "anything"
    with pytest.raises(UserError, match=str(status)):
        ask(stub.url)


@pytest.mark.parametrize("model", [None, "stub"])
def test_an_address_without_its_v1_is_understood(stub: Any, say: Any, caplog: Any, model: str | None) -> None:
    """Guards the published way of naming a judge, by host and port, of which every request was a 404."""
    stub.reply = say(GOOD)
    assert ask(stub.url.removesuffix("/v1"), model=model) == GOOD
    assert f"answers under {stub.url}, which is its address" in caplog.text
    with pytest.raises(UserError, match="404"):
        ask(f"{stub.url}/v2")


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {"max_tokens": 1400, "temperature": 0.0, "seed": 0}),
        ({"omit": ("max_tokens",)}, {"temperature": 0.0, "seed": 0}),
        ({"omit": ("seed", "temperature")}, {"max_tokens": 1400}),
        (
            {"max_tokens_name": "max_completion_tokens", "omit": ("temperature",)},
            {"max_completion_tokens": 1400, "seed": 0},
        ),
        ({"omit": ("seed", "temperature", "max_tokens")}, {}),
    ],
)
def test_fields_are_left_out_or_renamed(stub: Any, say: Any, settings: dict[str, Any], fields: dict[str, Any]) -> None:
    """Guards: models that refuse max_tokens, temperature or seed, of which every question was refused."""
    stub.reply = say("hm", GOOD)
    assert ask(stub.url, **settings) == GOOD
    assert {name: value for name, value in stub.bodies[0].items() if name not in ("model", "messages")} == fields
    assert stub.bodies[1].keys() == stub.bodies[0].keys()


def test_a_judge_that_refuses_every_question_is_not_asked_on(stub: Any) -> None:
    """Guards: thousands of requests that are all refused for one field, without a word of how to leave it out."""

    async def refuse(_: Any) -> web.Response:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model."
        return web.json_response({"error": {"message": message, "param": "max_tokens"}}, status=400)

    stub.reply = refuse

    async def use(judge: Judge) -> list[Any]:
        return list(await asyncio.gather(*(judge.ask(f"q{i}", []) for i in range(300))))

    outcomes = with_judge(Judge(JudgeConfig(stub.url, concurrency=4)), use)
    assert all(isinstance(outcome, Unavailable) and outcome.refused for outcome in outcomes)
    assert len(stub.bodies) < MOST_REFUSED + 4
    assert "--judge-omit" in outcomes[-1].reason and "max_tokens" in outcomes[-1].reason


def test_a_few_refusals_among_replies_are_a_few(stub: Any, say: Any) -> None:
    """Guards: the end of a judge that refuses single questions, such as those with a filtered image."""
    asked: list[int] = []

    async def some(request_body: Any) -> web.StreamResponse:
        asked.append(1)
        return await (say(GOOD)(request_body) if len(asked) % 10 == 5 else web_refusal())

    async def web_refusal() -> web.Response:
        return web.json_response({"error": {"message": "filtered"}}, status=400)

    stub.reply = some

    async def use(judge: Judge) -> list[Any]:
        return [await judge.ask(f"q{i}", []) for i in range(100)]

    outcomes = with_judge(Judge(JudgeConfig(stub.url)), use)
    assert len(stub.bodies) == 100 and outcomes.count(GOOD) == 10


@pytest.mark.parametrize("escaped", [False, True])
def test_a_key_that_the_server_echoes_reaches_no_file(
    stub: Any, say: Any, monkeypatch: Any, caplog: Any, tmp_path: Path, escaped: bool
) -> None:
    """Guards: a proxy that puts the request's header into the reply, which is kept word for word."""
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    caplog.set_level(logging.DEBUG)
    text = json.dumps({"choices": [{"message": {"content": f'{GOOD[:-2]} for Bearer {KEY}"}}'}}]})
    if escaped:
        text = text.replace("sk-very", "\\u0073k-very").replace("/abc", "\\/abc")

    async def echo(_: Any) -> web.Response:
        return web.Response(text=text, content_type="application/json")

    stub.reply = echo
    with ReplyCache(tmp_path / "answers.jsonl") as cache:
        reply = with_judge(Judge(JudgeConfig(stub.url), cache), lambda j: j.ask("q", [], lambda text: "score" in text))
    assert stub.keys == [f"Bearer {KEY}"] and "[key]" in reply
    assert "sk-very" not in reply + caplog.text + (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize("key", ["sk-a\nsk-b", "sk-ключ", "sk-\x07"])
def test_a_key_that_no_header_can_hold_is_said_and_not_shown(stub: Any, monkeypatch: Any, key: str) -> None:
    """Guards: an exception of the HTTP client that quotes the key."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        Judge(JudgeConfig(stub.url))
    assert "sk-" not in str(caught.value)
