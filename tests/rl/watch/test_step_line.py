"""The metrics of a step: what is averaged, what is only counted, and what is said about time."""

from __future__ import annotations

import pytest

from rl.reward.scores import Score, Unavailable, Unparsable
from rl.watch.report import step_seconds, tokens_per_second
from rl.watch.watch import JudgedRollout, Timer, reward_metrics


def test_failures_are_counted_and_never_averaged() -> None:
    metrics = reward_metrics(
        [
            JudgedRollout("add", 10, Score(8.0, {"sc": 8.0})),
            JudgedRollout("add", 10, Unavailable("late")),
            JudgedRollout("count", 20, Score(2.0, {"sc": 3.0}), cut=True),
            JudgedRollout("count", 20, Unparsable("well"), cut=False),
        ]
    )
    assert metrics["reward"] == 5.0
    assert metrics["reward_by_task"] == {"add": 8.0, "count": 2.0}
    assert metrics["parts"] == {"sc": 5.5}
    assert metrics["failed_by_task"] == {"add": 1, "count": 1}
    assert metrics["rollouts_by_task"] == {"add": 2, "count": 2}
    assert (metrics["failed"], metrics["unparsable"], metrics["unavailable"]) == (2, 1, 1)
    assert (metrics["answer_tokens"], metrics["sampled_tokens"], metrics["cut_chains"]) == (15.0, 60, 1)
    plain = reward_metrics([JudgedRollout("add", 10, Unavailable("late"))])
    assert (plain["reward"], plain["cut_chains"]) == (None, None)


def test_a_step_without_training_has_no_rate() -> None:
    """Guards a rate of 0, or a division by it, where nothing was trained; that is unknown."""
    line = {"sampled_tokens": 60, "seconds": {"sample": 2.0, "train": 0.0}}
    assert tokens_per_second(line) == {"sampled": 30.0, "trained": None}
    assert tokens_per_second({**line, "trained_tokens": 0, "seconds": {"train": 1.0}}) == {
        "sampled": None,
        "trained": None,
    }


def test_time_per_step_is_said_after_three_steps_and_forgets_the_first() -> None:
    """The first step loads and compiles; an estimate from it alone would be wrong for hours."""
    lines = [{"seconds": {"sample": each, "train": 1.0}} for each in (500.0, 1.0, 3.0, 2.0)]
    assert [step_seconds(lines[:count]) for count in range(5)] == [None, None, None, 3.0, 3.0]


def test_a_phase_inside_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards phases whose sum is more than the step."""
    ticks = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr("rl.watch.watch.time.perf_counter", lambda: next(ticks))
    timer = Timer()
    with timer.phase("train"), timer.phase("reference"):
        pass
    assert timer.seconds == {"reference": 2.0, "train": 8.0}
