"""The scoring thread: futures that always come to an end."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest
from aiohttp import web

from emu3.errors import UserError
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scorer import Scorer
from rl.reward.scores import Score, Unavailable
from rl.reward.viescore import VieScore, load_prompts


def metric(url: str, **settings: Any) -> VieScore:
    return VieScore(Judge(JudgeConfig(url, **settings)), load_prompts())


async def hang(body: dict[str, Any]) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


def test_scores_arrive_while_the_caller_works(stub, image) -> None:
    """Guards: submit that blocks; scores that wait for the last rollout."""
    start = time.monotonic()
    with Scorer(metric(stub.url)) as scorer:
        futures = [scorer.submit("do", image(0), image(seed)) for seed in range(1, 9)]
        outcomes = [future.result(300) for future in futures]
        assert all(isinstance(outcome, Score) and outcome.value == 4 for outcome in outcomes)
        counters = scorer.counters()
    assert counters["asks"] == counters["answered"] == len(stub.bodies) == 16
    assert 0 < counters["latency_mean"] < time.monotonic() - start


def test_outage_in_the_middle_is_an_outcome(stub, image) -> None:
    """Guards: a caller that waits for ever for a judge that went away."""
    with Scorer(metric(stub.url, deadline=3.0)) as scorer:
        assert isinstance(scorer.submit("do", image(0), image(1)).result(300), Score)
        stub.reply = hang
        assert isinstance(scorer.submit("do", image(0), image(2)).result(300), Unavailable)


def test_close_is_quick_and_releases_the_waiting(stub, image) -> None:
    """Guards: a run that cannot end because the judge hangs, requests that queue for a slot included."""
    stub.reply = hang
    scorer = Scorer(metric(stub.url, concurrency=2))
    futures = [scorer.submit("do", image(0), image(seed)) for seed in range(1, 9)]
    while len(stub.bodies) < 2:
        time.sleep(0.01)
    start = time.monotonic()
    scorer.close()
    scorer.close()
    assert time.monotonic() - start < 30
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(60)
    with pytest.raises(RuntimeError, match="closed"):
        scorer.submit("do", image(0), image(1))


def test_a_bug_reaches_the_caller(stub, image, monkeypatch) -> None:
    """Guards: an exception in the thread that only shows as a future which is never done."""
    with Scorer(metric(stub.url)) as scorer:
        with pytest.raises(AttributeError):
            scorer.submit("do", image(0), "not an image").result(300)  # type: ignore[arg-type]
        assert isinstance(scorer.submit("do", image(0), image(1)).result(300), Score)


def test_dead_judge_ends_the_start() -> None:
    """Guards: a run that samples for an hour before it learns that nobody judges, and a thread left behind."""
    before = time.monotonic()
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        Scorer(metric("http://127.0.0.1:9/v1", attempts=2))
    assert time.monotonic() - before < 60
