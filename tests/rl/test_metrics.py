"""Metrics: what is averaged, what is only counted, and a file that reads on over a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl.metrics import Judged, MetricsLog, console_line, reward_metrics
from rl.reward.outcome import Score, Unavailable, Unparsable

STEP: dict[str, Any] = {
    "reward": None,
    "parts": {},
    "kl": None,
    "entropy": None,
    "constant_share": 1.0,
    "failed": 4,
    "rollouts": 4,
    "grad_norm": None,
    "lr": 1e-3,
    "seconds": {"sample": 1.0},
}


def test_failures_are_counted_and_never_averaged() -> None:
    metrics = reward_metrics(
        [
            Judged("add", 10, Score(8.0, {"sc": 8.0})),
            Judged("add", 10, Unavailable("late")),
            Judged("count", 20, Score(2.0, {"sc": 3.0})),
            Judged("count", 20, Unparsable("well")),
        ]
    )
    assert metrics["reward"] == 5.0
    assert metrics["reward_by_task"] == {"add": 8.0, "count": 2.0}
    assert metrics["parts"] == {"sc": 5.5}
    assert (metrics["failed"], metrics["unparsable"], metrics["unavailable"]) == (2, 1, 1)
    assert reward_metrics([Judged("add", 10, Unavailable("late"))])["reward"] is None


def test_a_step_without_values_has_a_line() -> None:
    """A step on which nothing was trained must not end the run in its own log."""
    line = console_line({"step": 3, **STEP})
    assert "reward -" in line and "failed 4/4" in line and "\n" not in line


def test_resume_drops_the_lines_of_steps_to_come(make_config: Any, tmp_path: Path) -> None:
    """Guards curves in which a stretch occurs twice; the line that a kill cut short goes as well."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(4)) + '{"step": 4, "rew')
    log = MetricsLog(path, 2, make_config())
    log.write({"step": 2, **STEP})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
