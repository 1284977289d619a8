"""The list of what can come over a network is open: whatever it is, an ask ends with a reply or with a reason."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from edge_replies import COMPLETION, GOOD, KEY, ask
from raw_judge import HEAD, RawJudge, RawReply
from stub_judge import with_judge

from emu3.errors import UserError
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Score, Unavailable, Unparsable
from rl.reward.transport import LARGEST_REPLY
from rl.reward.viescore import VieScore, load_prompts

ROOT = Path(__file__).parents[3]


@pytest.fixture
def raw(stub: Any) -> Iterator[RawJudge]:
    yield RawJudge(stub)


def sent(data: bytes) -> RawReply:
    """These bytes and then the end of the connection; a client that goes away in the middle is fine."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(data), 2**20):
            writer.write(data[start : start + 2**20])
            try:
                await writer.drain()
            except ConnectionError:
                return

    return reply


def body(data: bytes, *headers: bytes) -> bytes:
    head = HEAD % (b"200 OK", len(data))
    return head[:-2] + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + data


@cache
def edges() -> dict[str, bytes]:
    noise = random.Random(0).randbytes(4000)
    return {
        "noise": noise,
        "noise behind a status": b"HTTP/1.1 200 OK\r\n" + noise,
        "nothing": b"",
        "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
        "a status that is none": b"HTTP/1.1 banana\r\n\r\n",
        "a status of six digits": b"HTTP/1.1 200000 OK\r\n\r\n",
        "a header of a megabyte": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2**20 + b"\r\n\r\n",
        "a hundred thousand headers": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
        "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n0\r\n\r\n",
        "lists in lists": body(b"[" * 1_000_000),
        "closed lists in lists": body(b"[" * 500_000 + b"]" * 500_000),
        "objects in objects": body(b'{"choices":' * 200_000),
        "a number of a million digits": body(b'{"choices": [' + b"9" * 1_000_000 + b"]}"),
        "not UTF-8": body(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}' + b"\xff"),
        "a packing that nobody asked for": body(b"x" * 100, b"Content-Encoding: br"),
        "a packing that is none": body(b"x" * 100, b"Content-Encoding: gzip"),
        "a packed flood": body(gzip.compress(b" " * 20_000_000, 1), b"Content-Encoding: gzip"),
        "a flood": body(b" " * (LARGEST_REPLY + 1)),
        "an error in place of a completion": body(b'{"error": {"message": "overloaded"}}'),
        "absurd numbers to wait": HEAD.replace(b"\r\n\r\n", b"\r\nRetry-After: 1e999\r\n\r\n") % (b"503 No", 0),
        "a date to wait for that is none": HEAD.replace(b"\r\n\r\n", b"\r\nRetry-After: Mon, 99 Foo 99999\r\n\r\n")
        % (b"503 No", 0),
    }


@pytest.mark.parametrize("name", edges())
def test_whatever_the_server_sends_is_a_typed_outcome(raw: RawJudge, name: str) -> None:
    """Guards: `aiohttp.ClientResponseError` out of bytes that are no HTTP ended a run with a traceback."""
    raw.reply = sent(edges()[name])
    outcome = ask(raw.url)
    assert isinstance(outcome, Unavailable) and "\n" not in outcome.reason and len(outcome.reason) <= 400, outcome
    assert "no reply" not in outcome.reason, "the deadline ended it"


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths_in(inner, (*path, key))


WRONG = [
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "x",
    "\ud83d",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [{}],
    ["a", {"type": "b"}],
]


def test_a_wrong_type_in_any_field_is_a_typed_outcome(stub: Any, image: Any) -> None:
    """Guards: a field that is no list, no object or no number where the client looks for one; and a score out of it
    that nobody gave."""
    variants: list[Any] = list(WRONG)
    for path in paths_in(COMPLETION):
        for wrong in WRONG:
            variants.append(copy.deepcopy(COMPLETION))
            place: Any = variants[-1]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
    left = iter(variants)

    async def reply(_: Any) -> web.Response:
        return web.Response(text=json.dumps(next(left)), content_type="application/json")

    stub.reply = reply
    judge = Judge(JudgeConfig(stub.url, attempts=1, reasks=0, concurrency=1))
    metric = VieScore(judge, load_prompts())

    async def use(_: Judge) -> list[Any]:
        return [await metric.score(f"do {place}", image(0), image(place + 1)) for place in range(len(variants) // 2)]

    outcomes = with_judge(judge, use)
    assert {type(outcome) for outcome in outcomes} == {Score, Unparsable, Unavailable}
    assert {outcome.value for outcome in outcomes if isinstance(outcome, Score)} == {7.0}


CHILD = """
import asyncio, json, re, sys, time
from pathlib import Path
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig

def peak_mb():  # of this program alone; getrusage counts what it was forked from
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

async def main():
    judge = Judge(JudgeConfig(sys.argv[1], model="stub", attempts=1, reasks=0, deadline=60.0, concurrency=12))
    await judge.model_name()
    before = peak_mb()
    start = time.monotonic()
    outcomes = await asyncio.gather(*(judge.ask(f"q{i}", []) for i in range(12)))
    await judge.aclose()
    print(json.dumps([peak_mb() - before, time.monotonic() - start, outcomes[0].reason]))

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["flood", "packed flood", "lists", "objects", "headers"])
def test_memory_under_a_hostile_reply_is_bounded(raw: RawJudge, kind: str) -> None:
    """Guards: a reply of 100 MB took 11.8 GB and 199 s under a deadline of 5 s. Twelve at once here."""
    data = {
        "flood": lambda: body(b'{"choices": [' + b"[]," * 33_000_000),
        "packed flood": lambda: body(gzip.compress(b"[]," * 33_000_000, 1), b"Content-Encoding: gzip"),
        "lists": lambda: body(b"[" + b"[]," * 690_000 + b"0]"),
        "objects": lambda: body(b"[" + b'{"":0},' * 290_000 + b"0]"),
        "headers": lambda: b"HTTP/1.1 200 OK\r\n" + b"X-Header: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 2_000_000,
    }[kind]()
    raw.reply = sent(data)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, raw.url],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    more_mb, seconds, reason = json.loads(done.stdout)
    print(f"{kind}: {more_mb:.0f} MB more, {seconds:.1f} s, {reason}")
    assert more_mb < 500 and seconds < 60, (more_mb, seconds)
    assert reason


def test_a_redirect_to_another_host_is_not_followed(stubs: Callable[..., Any], monkeypatch: Any) -> None:
    """Guards: the key and the images of a run given to whoever the server names."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server, other = stubs(), stubs()

    async def moved(_: Any) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{other.url}/chat/completions?key={KEY}"})

    server.reply = moved
    outcome = ask(server.url)
    assert isinstance(outcome, Unavailable) and outcome.refused
    assert f"redirect to {other.url}/chat/completions is not followed" in outcome.reason
    assert other.bodies == [] and "sk-very" not in outcome.reason


def test_a_redirect_within_the_server_is_followed_and_ends(stub: Any, say: Any) -> None:
    """Guards: a server that moved its paths, and one that moves them in a circle."""
    seen: list[str] = []

    async def circle(_: Any) -> web.Response:
        seen.append("")
        return web.Response(status=308, headers={"Location": "/v1/chat/completions"})

    stub.reply = circle
    outcome = ask(stub.url)
    assert isinstance(outcome, Unavailable) and "308" in outcome.reason and len(seen) == 4
    stub.reply = lambda request_body: circle(request_body) if len(seen) < 6 else say(GOOD)(request_body)
    assert ask(stub.url) == GOOD


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_loopback_goes_round_a_proxy(stub: Any, say: Any, monkeypatch: Any, name: str) -> None:
    """Guards: a proxy that is asked for a loopback address, by which a judge on the same machine is unreachable."""
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    stub.reply = say(GOOD)
    assert ask(stub.url) == GOOD
    assert ask(stub.url.replace("127.0.0.1", "localhost")) == GOOD


def test_a_page_of_the_proxys_own_is_said_to_be_its(stub: Any, monkeypatch: Any) -> None:
    """Guards: a proxy's 403, which is taken for the judge's."""
    monkeypatch.setattr("rl.reward.transport._is_loopback", lambda host: False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", stub.url.removesuffix("/v1"))

    async def blocked() -> None:
        raise web.HTTPForbidden(text="<html>ERR_ACCESS_DENIED</html>")

    stub.before_models = blocked
    with pytest.raises(UserError, match=r"HTTP 403.*through the proxy.*set by http_proxy"):
        ask("http://judge.invalid:4877/v1")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "all_proxy"])
def test_a_message_about_a_proxy_names_its_variable(monkeypatch: Any, name: str) -> None:
    """Guards: hours of looking at a judge that is well, while a proxy that nobody remembers is asked for it."""
    for other in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://someone:password@127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        ask("http://judge.invalid:4877/v1")
    assert f"through the proxy http://127.0.0.1:9, set by {name}" in str(caught.value)
    assert "password" not in str(caught.value)
    monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    with pytest.raises(UserError, match=f"{name}\\), which is no HTTP proxy"):
        ask("http://judge.invalid:4877/v1")


def test_the_deadline_holds_for_a_flood(raw: RawJudge) -> None:
    """Guards: a server that sends for ever within the bound on bytes."""

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (b"200 OK", 10**9))
        for _ in range(600):
            writer.write(b" " * 1000)
            await writer.drain()
            await asyncio.sleep(0.02)

    raw.reply = slow
    start = time.monotonic()
    outcome = ask(raw.url, deadline=0.5)
    assert isinstance(outcome, Unavailable) and time.monotonic() - start < 5
