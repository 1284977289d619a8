"""Metrics beside the judge: each measured when it is asked for, and again only for a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge

from baselines import score
from baselines.metrics.image_metric import EditedSample, Missing
from baselines.results.records import Prediction, ScoredSample, read_records, read_settings, write_records
from emu3.errors import UserError
from rl.reward.config import JudgeConfig


class Redness:
    """A metric that needs a target and no weights."""

    name = "redness"
    higher_is_better = False
    needs_target = True
    version = "one"
    calls = 0

    def score(self, rows: list[EditedSample]) -> list[float | Missing]:
        Redness.calls += 1
        return [float(row.edited.getpixel((0, 0))[0]) if row.target else Missing("no target") for row in rows]  # type: ignore[index]


class Spread:
    """A metric over the whole set."""

    name = "spread"
    higher_is_better = True
    needs_target = False
    version = "one"

    def score_set(self, rows: Any) -> tuple[float, int]:
        values = [row.edited.getpixel((0, 0))[0] for row in rows]
        return float(max(values) - min(values)), len(values)


@pytest.fixture
def other_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"redness": Redness, "spread": Spread}
    monkeypatch.setattr("baselines.metrics.measuring.metric_named", lambda name, weights: made[name]())
    monkeypatch.setattr(Redness, "calls", 0)


@pytest.mark.usefixtures("other_metrics")
def test_metrics_stand_beside_the_judge_in_any_order(predicted: Path, judge: FakeJudge, tmp_path: Path) -> None:
    """Guards one file for all metrics: none pushes another out, and their order of scoring leaves no trace."""
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    score.run(predicted, judge=JudgeConfig(judge.url), metrics=["viescore", "redness", "spread"], output=one)
    for metric in ("spread", "viescore", "redness"):
        score.run(predicted, judge=JudgeConfig(judge.url), metrics=[metric], output=other)
    assert one.read_bytes() == other.read_bytes()
    rows = read_records(one, ScoredSample)
    assert [row.metric for row in rows] == ["viescore"] * 5 + ["redness"] * 5 + ["spread"]
    assert [row.status for row in rows[5:]] == ["score"] * 4 + ["missing", "score"]
    assert rows[9].value is None and rows[9].detail == "no target"
    assert (rows[10].id, rows[10].parts, rows[10].task) == ("*", {"n": 5.0}, "")
    assert read_settings(one)["metric redness"] == {"version": "one", "higher_is_better": False}


@pytest.mark.usefixtures("other_metrics")
def test_a_metric_is_measured_again_only_for_a_reason(predicted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against work done twice, holes that stay, and two versions under one name."""
    whole = read_records(predicted / "predictions.parquet", Prediction)[:4]
    write_records(predicted / "predictions.parquet", whole, {"editor": "emu3", "seed": 5})
    for _ in range(2):
        score.run(predicted, metrics=["redness"])
    assert Redness.calls == 1
    about = read_settings(predicted / "scores.parquet")["evaluation"]
    assert about == {"editor": "emu3", "seed": 5}, "the editor is known without a judge, too"
    monkeypatch.setattr(Redness, "version", "two")
    with pytest.raises(UserError, match="metric redness"):
        score.run(predicted, metrics=["redness"])
    with pytest.raises(UserError, match="viescore needs a judge"):
        score.run(predicted)
