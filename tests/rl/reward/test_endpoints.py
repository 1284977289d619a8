"""Several servers of one judge: who is asked, who is left out, and who comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from stub_judge import with_judge

from emu3.errors import UserError
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Unavailable


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health checks follow at once, but those of servers that are well, which a test asks for."""
    monkeypatch.setattr("rl.reward.endpoints.FIRST_PAUSE", 0.001)


def with_opened(judge: Judge, use: Callable[[Judge], Awaitable[Any]]) -> Any:
    """As `with_judge`, with servers that are looked after already."""

    async def opened(judge: Judge) -> Any:
        await judge.model_name()
        return await use(judge)

    return with_judge(judge, opened)


def both(*stubs: Any) -> str:
    return ",".join(stub.url for stub in stubs)


async def many(judge: Judge, count: int, start: int = 0) -> list[str | Unavailable]:
    return list(await asyncio.gather(*(judge.ask(f"q{start + i}", []) for i in range(count))))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


async def error_500(body: dict[str, Any]) -> web.Response:
    return web.Response(status=500)


def test_the_one_with_the_fewest_in_flight_is_asked(stubs, say) -> None:
    """Guards: turns, by which a slow server holds up half of all asks. The first two here go to each, then all to the
    one that answers."""
    slow, quick = stubs(), stubs()
    quick.reply = say("yes")

    async def use(judge: Judge) -> list[str | Unavailable]:
        release = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def stuck(body: dict[str, Any]) -> web.StreamResponse:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(release.wait(), loop))
            return await say("yes")(body)

        slow.reply = stuck
        asks = [asyncio.create_task(judge.ask(f"q{i}", [])) for i in range(10)]
        await until(lambda: len(quick.bodies) == 8)
        release.set()
        return list(await asyncio.gather(*asks))

    assert with_opened(Judge(JudgeConfig(both(slow, quick), concurrency=4)), use) == ["yes"] * 10
    assert (len(slow.bodies), len(quick.bodies)) == (2, 8)


def test_idle_servers_share_the_asks(stubs, say) -> None:
    """Guards: one after the other, all go to the first, of which none is ever more loaded than the next."""
    servers = [stubs() for _ in range(3)]
    for server in servers:
        server.reply = say("yes")

    async def use(judge: Judge) -> None:
        for i in range(9):
            await judge.ask(f"q{i}", [])

    with_opened(Judge(JudgeConfig(both(*servers))), use)
    assert [len(server.bodies) for server in servers] == [3, 3, 3]


def test_asks_of_one_that_dies_move_to_another(stubs, say) -> None:
    """Guards: rollouts that are lost with a server though another is well."""
    dying, well = stubs(), stubs()
    well.reply = say("yes")

    async def stuck(body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    dying.reply = stuck

    async def use(judge: Judge) -> tuple[list[str | Unavailable], dict[str, dict[str, int]]]:
        asks = asyncio.create_task(many(judge, 12))
        await until(lambda: len(dying.bodies) == 6)
        await asyncio.to_thread(dying.close)
        return await asks + await many(judge, 5, start=12), judge.endpoints.counts()

    answers, counts = with_opened(Judge(JudgeConfig(both(dying, well))), use)
    assert answers == ["yes"] * 17
    assert counts[dying.url] == {"requests": 6, "failures": 6, "outages": 1}
    assert counts[well.url] == {"requests": 17, "failures": 0, "outages": 0}


def test_one_that_hangs_loses_its_asks_to_another(stubs, say, monkeypatch) -> None:
    """Guards: a machine that freezes with its connections open costs each ask there its whole deadline. The deadline
    here is longer than the test may run."""
    monkeypatch.setattr("rl.reward.endpoints.CHECK_EVERY", 0.02)
    monkeypatch.setattr("rl.reward.endpoints.CHECK_TIMEOUT", 0.2)
    frozen, well = stubs(), stubs()
    well.reply = say("yes")

    async def hang(*_: Any) -> Any:
        await asyncio.sleep(60)

    frozen.reply = hang

    async def use(judge: Judge) -> list[str | Unavailable]:
        frozen.before_models = hang
        async with asyncio.timeout(20):
            return await many(judge, 8)

    judge = Judge(JudgeConfig(both(frozen, well), deadline=3600))
    assert with_opened(judge, use) == ["yes"] * 8
    assert judge.endpoints.counts()[frozen.url]["outages"] == 1
    assert judge.counters.unavailable == 0


def test_one_that_is_well_again_comes_back(stubs, say) -> None:
    """Guards: a server that is restarted and never used again, for days."""
    first, second = stubs(), stubs()
    second.reply = say("yes")

    async def use(judge: Judge) -> Any:
        await asyncio.to_thread(first.close)
        await many(judge, 4)
        again = await asyncio.to_thread(stubs, first.port)
        again.reply = say("yes")
        asked = 4
        async with asyncio.timeout(20):
            while not again.bodies:
                await many(judge, 2, start=asked)
                asked += 2
        return again

    assert with_opened(Judge(JudgeConfig(both(first, second))), use).bodies
    assert len(second.bodies) >= 4


def test_one_that_comes_back_as_another_model_stays_out(stubs, say) -> None:
    """Guards: scores of two models in one run, after somebody started another on the same port."""
    first, second = stubs(), stubs()
    second.reply = say("yes")

    async def use(judge: Judge) -> Any:
        await asyncio.to_thread(first.close)
        await many(judge, 4)
        other = await asyncio.to_thread(stubs, first.port)
        other.models = ["other"]
        looked = []

        async def note() -> None:
            looked.append(1)

        other.before_models = note
        await until(lambda: len(looked) >= 3)
        await many(judge, 6, start=4)
        return other

    assert with_opened(Judge(JudgeConfig(both(first, second))), use).bodies == []


def test_one_that_only_looks_well_is_tried_less_and_less(stubs, say) -> None:
    """Guards: a server with a good list of models and a dead engine, which as the least loaded gets every ask first.
    Its pauses double, from 1 ms: in the second that this takes it may be tried about ten times."""
    broken, well = stubs(), stubs()
    broken.reply = error_500
    well.reply = say("yes")

    async def use(judge: Judge) -> list[str | Unavailable]:
        return [await judge.ask(f"q{i}", []) for i in range(200)]

    assert with_opened(Judge(JudgeConfig(both(broken, well))), use) == ["yes"] * 200
    assert 2 <= len(broken.bodies) < 40


def test_a_busy_one_stays_in_the_rotation(stubs, say) -> None:
    """Guards: 429 taken for a crash, by which a loaded judge loses half of its servers."""
    busy, well = stubs(), stubs()
    well.reply = say("yes")

    async def too_many(body: dict[str, Any]) -> web.Response:
        return web.Response(status=429)

    busy.reply = too_many
    judge = Judge(JudgeConfig(both(busy, well)))
    assert with_opened(judge, lambda j: many(j, 6)) == ["yes"] * 6
    assert judge.endpoints.counts()[busy.url]["outages"] == 0
    assert judge.endpoints.counts()[busy.url]["failures"] > 0


def test_an_outage_of_all_ends_with_the_first_that_answers(stubs, say) -> None:
    """Guards: a rotation that is empty for ever, or an exception where an outcome belongs."""
    first, second = stubs(), stubs()
    judge = Judge(JudgeConfig(both(first, second), attempts=2))

    async def use(j: Judge) -> tuple[Any, Any]:
        await asyncio.gather(*(asyncio.to_thread(stub.close) for stub in (first, second)))
        lost = await j.ask("q", [])
        again = await asyncio.to_thread(stubs, second.port)
        again.reply = say("yes")
        found = await j.ask("q", [])
        while not isinstance(found, str):
            found = await j.ask("q", [])
        return lost, found

    lost, found = with_opened(judge, use)
    assert isinstance(lost, Unavailable) and not lost.refused
    assert found == "yes"


def test_all_serve_the_same_model(stubs) -> None:
    """Guards: rewards that depend on which server had less to do."""
    first, second = stubs(), stubs()
    second.models = ["other"]
    with pytest.raises(UserError) as caught:
        with_opened(Judge(JudgeConfig(both(first, second))), lambda j: j.ask("q", []))
    assert f"stub at {first.url}, other at {second.url}" in str(caught.value)
    second.models = ["other", "stub"]
    with pytest.raises(UserError, match="no model other"):
        with_opened(Judge(JudgeConfig(both(first, second), "other")), lambda j: j.ask("q", []))
    assert with_opened(Judge(JudgeConfig(both(first, second), "stub")), lambda j: j.model_name()) == "stub"


def test_each_must_answer_at_the_start(stubs) -> None:
    """Guards: a slip in the second address that shows on the day when the first is down."""
    with pytest.raises(UserError, match=r"the judge at http://127\.0\.0\.1:9/v1 cannot be used"):
        with_opened(Judge(JudgeConfig(f"{stubs().url}, http://127.0.0.1:9/v1", attempts=2)), lambda j: j.ask("q", []))


def test_a_warning_names_the_server_and_not_the_key(stubs, monkeypatch, caplog) -> None:
    """Guards: a server that is out without a word; secrets in the words, from servers that quote the key."""
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    first, second = stubs(), stubs()

    async def quote(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": f"overrun by {key}"}}, status=500)

    first.reply = second.reply = quote
    outcome = with_opened(Judge(JudgeConfig(both(first, second), attempts=3)), lambda j: j.ask("q", []))
    assert isinstance(outcome, Unavailable)
    assert f"the judge at {first.url} is out of the rotation: HTTP 500: overrun by [key]" in caplog.text
    assert key not in caplog.text + outcome.reason
