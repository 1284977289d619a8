"""Scores: failures stay failures, nothing is asked twice, nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_judge import FakeJudge

from baselines import evaluate, score
from baselines.benchmarks.spec import Benchmark
from baselines.records import ScoredSample, read_records
from emu3.errors import UserError

FULL = Benchmark("data", source="input", instruction="instruction", target="output", task="task", id="id")


@pytest.fixture
def predicted(make_data: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of five predictions, scored by nobody."""
    folder = tmp_path / "out"
    evaluate.run(editor="no-edit", name="m", data=make_data(), output_dir=folder, benchmark=FULL, image_area=256)
    return folder


def scored(folder: Path, judge: FakeJudge) -> list[ScoredSample]:
    return read_records(score.run(folder, judge_url=judge.url), ScoredSample)


def test_each_sample_gets_its_own_outcome(predicted: Path, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards order and typing: a failure has no value, and its reason or the judge's words are kept."""
    monkeypatch.setattr(score, "WINDOW", 2)
    judge.answers = {
        "change number 0": '{"score": [4, 8], "reasoning": "half"}',
        "change number 1": "I would rather not say.",
        "change number 2": None,
        "change number 4": '{"score": [0, 10], "reasoning": "nothing done"}',
    }
    rows = scored(predicted, judge)
    assert [row.id for row in rows] == [f"sample-{place}" for place in range(5)]
    assert [row.status for row in rows] == ["score", "unparsable", "unavailable", "score", "score"]
    assert [row.value for row in rows] == [pytest.approx(math.sqrt(4 * 9)), None, None, 9.0, 0.0]
    assert rows[0].parts["sc"] == 4 and rows[1].parts == {}
    assert rows[1].detail == "I would rather not say."
    assert "not today" in (rows[2].detail or "")
    assert (rows[0].model, rows[0].split, rows[0].task) == ("m", "complex", "counting")


def test_a_second_run_asks_only_for_what_failed(predicted: Path, judge: FakeJudge) -> None:
    """Guards resumption: answers are kept, failures are not, and scores that were there stay as they are."""
    judge.answers = {"change number 2": None}
    first = scored(predicted, judge)
    judge.answers = {}
    asked = judge.questions
    second = scored(predicted, judge)
    assert judge.questions == asked + 1
    assert [row.status for row in second] == ["score"] * 5
    assert second[:2] + second[3:] == first[:2] + first[3:]
    before = (predicted / "scores.parquet").read_bytes()
    scored(predicted, judge)
    assert judge.questions == asked + 1
    assert (predicted / "scores.parquet").read_bytes() == before


def test_interrupted_scoring_keeps_its_answers(
    predicted: Path, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the cache on disk: what was answered before the interruption is not asked again."""
    monkeypatch.setattr(score, "WINDOW", 1)
    whole = score._scored
    seen = 0

    def interrupted(*arguments: object) -> ScoredSample:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(score, "_scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scored(predicted, judge)
    assert not (predicted / "scores.parquet").exists()
    monkeypatch.setattr(score, "_scored", whole)
    assert [row.status for row in scored(predicted, judge)] == ["score"] * 5
    # Five samples, two questions each; at most the one under way at the interruption was asked twice.
    assert 10 <= judge.questions <= 12


def test_another_judge_needs_another_file(predicted: Path, judge: FakeJudge, tmp_path: Path) -> None:
    """Guards against a table that mixes judges under one name."""
    scored(predicted, judge)
    judge.name = "other"
    with pytest.raises(UserError, match=r"already holds a run with judge='fake', this one has judge='other'"):
        scored(predicted, judge)
    score.run(predicted, judge_url=judge.url, output=tmp_path / "other.parquet")


def test_a_dead_judge_is_one_clear_line(
    predicted: Path, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rl.reward.retry.BACKOFF", lambda state: 0.0)
    judge.close()
    with pytest.raises(UserError, match=f"the judge at {judge.url} cannot be used"):
        score.run(predicted, judge_url=judge.url)
    assert not (predicted / "scores.parquet").exists()


def test_missing_pictures_and_predictions_are_named(predicted: Path, judge: FakeJudge, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/predictions.parquet does not exist|nowhere does not exist"):
        score.run(tmp_path / "nowhere", judge_url=judge.url)
    next((predicted / "batches").rglob("*-edited.png")).unlink()
    with pytest.raises(UserError, match=r"edited.png does not exist"):
        score.run(predicted, judge_url=judge.url)
