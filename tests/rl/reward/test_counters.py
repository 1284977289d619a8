"""What a step's log says about the judge."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.counters import JudgeMeter, JudgeStep, judge_metrics
from rl.reward.scorer import Scorer
from rl.reward.viescore import VieScore, load_prompts


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_busy_is_time_with_an_ask_under_way() -> None:
    """Guards: the sum of all asks' times, which with 64 at once is 64 times the truth; a gap counted as busy."""
    clock = Clock()
    meter = JudgeMeter(clock)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(meter.ask_under_way())
        clock.now += 2
        second.enter_context(meter.ask_under_way())
        clock.now += 3
        first.close()
        clock.now += 4
    clock.now += 50
    with meter.ask_under_way():
        clock.now += 1
    step = meter.read({})
    assert (step.busy_seconds, step.latencies) == (2 + 3 + 4 + 1, [5, 7, 1])
    assert meter.counters.ask_seconds == 13


def test_a_reading_in_the_middle_of_an_ask_splits_its_time() -> None:
    """Guards: time that is counted in two steps, or in none."""
    clock = Clock()
    meter = JudgeMeter(clock)
    with meter.ask_under_way():
        clock.now += 2
        assert (meter.read({}).busy_seconds, meter.read({}).latencies) == (2, [])
        clock.now += 3
    step = meter.read({})
    assert (step.busy_seconds, step.latencies) == (3, [5])
    assert meter.read({}).busy_seconds == 0


def test_a_reading_holds_what_is_new() -> None:
    """Guards: totals of the run logged as those of the step, of the servers too."""
    meter = JudgeMeter()
    meter.counters.asks += 5
    assert meter.read({"a": {"requests": 5}}).counts["asks"] == 5
    meter.counters.asks += 2
    step = meter.read({"a": {"requests": 8}, "b": {"requests": 1}})
    assert (step.counts["asks"], step.counts["answered"]) == (2, 0)
    assert step.endpoints == {"a": {"requests": 3}, "b": {"requests": 1}}


def reading(latencies: list[float], busy: float, endpoints: dict[str, dict[str, int]] | None = None) -> JudgeStep:
    return JudgeStep({"asks": len(latencies), "retries": 1}, latencies, busy, endpoints or {})


def test_ranks_are_joined_exactly() -> None:
    """Guards: a mean of medians; the share of a rank's idle time that is divided by another's."""
    metrics = judge_metrics([reading([1.0] * 9, 10.0), reading([5.0], 6.0)], [2.0, 2.0])
    assert (metrics["asks"], metrics["retries"]) == (10, 2)
    assert (metrics["latency_mean"], metrics["latency_p50"], metrics["latency_max"]) == (1.4, 1.0, 5.0)
    assert 1.0 < metrics["latency_p95"] < 5.0
    assert (metrics["busy_seconds"], metrics["wait_seconds"], metrics["hidden_share"]) == (8.0, 2.0, 0.75)
    assert "endpoints" not in metrics


def test_a_step_that_sends_nothing_has_no_latency() -> None:
    """Guards: NaN in the log, and a latency of 0 for a judge that nobody asked."""
    metrics = judge_metrics([reading([], 0.0)], [0.3])
    assert [metrics[f"latency_{name}"] for name in ("mean", "p50", "p95", "max")] == [None] * 4
    assert metrics["hidden_share"] is None


def test_servers_are_listed_where_there_are_several() -> None:
    counts = {"requests": 3, "failures": 1, "outages": 1}
    one, two = {"a": counts, "b": counts}, {"b": counts, "a": counts}
    metrics = judge_metrics([reading([], 1.0, one), reading([], 1.0, two)], [0.0, 0.0])
    assert metrics["endpoints"] == {name: {"requests": 6, "failures": 2, "outages": 2} for name in "ab"}


def test_a_scorer_tells_of_its_step(stub: Any, image: Any) -> None:
    """Guards: a reading from another thread than the one that counts; an ask in two steps."""
    with Scorer(VieScore(Judge(JudgeConfig(stub.url)), load_prompts())) as scorer:
        for seed in (1, 2):
            scorer.submit("do", image(0), image(seed)).result(300)
            step = scorer.step()
            assert step.counts["asks"] == step.counts["answered"] == len(step.latencies) == 2
            assert 0 < max(step.latencies) <= step.busy_seconds
            assert step.endpoints[stub.url] == {"requests": 2, "failures": 0, "outages": 0}
        assert scorer.step().busy_seconds == 0
    with pytest.raises(RuntimeError, match="closed"):
        scorer.step()
