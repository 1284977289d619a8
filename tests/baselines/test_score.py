"""Scores: failures stay failures, nothing is asked twice, nothing is lost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from noise_images import noise

from baselines import score
from baselines.results.records import Prediction, ScoredSample, read_records, read_settings, write_records
from baselines.score import Pace, usage_of
from emu3.errors import UserError
from rl.reward.config import JudgeConfig


def scored(folder: Path, judge: FakeJudge) -> list[ScoredSample]:
    return read_records(score.run(folder, judge=JudgeConfig(judge.url)), ScoredSample)


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
    whole = score.scored
    seen = 0

    def interrupted(*arguments: object) -> ScoredSample:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(score, "scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scored(predicted, judge)
    assert not (predicted / "scores.parquet").exists()
    monkeypatch.setattr(score, "scored", whole)
    assert [row.status for row in scored(predicted, judge)] == ["score"] * 5
    # Five samples, two questions each; at most the one under way at the interruption was asked twice.
    assert 10 <= judge.questions <= 12


def test_another_judge_needs_another_file(predicted: Path, judge: FakeJudge, tmp_path: Path) -> None:
    """Guards against a table that mixes judges under one name."""
    scored(predicted, judge)
    judge.name = "other"
    with pytest.raises(UserError, match='holds a run with judge="fake", this one has judge="other"'):
        scored(predicted, judge)
    score.run(predicted, judge=JudgeConfig(judge.url), output=tmp_path / "other.parquet")


def test_a_dead_judge_is_one_clear_line(
    predicted: Path, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rl.reward.endpoints.BACKOFF", lambda state: 0.0)
    judge.close()
    with pytest.raises(UserError, match=f"the judge at {judge.url} cannot be used"):
        score.run(predicted, judge=JudgeConfig(judge.url))
    assert not (predicted / "scores.parquet").exists()


def test_missing_images_and_predictions_are_named(predicted: Path, judge: FakeJudge, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist: baselines.evaluate writes it when all images are"):
        score.run(tmp_path / "nowhere", judge=JudgeConfig(judge.url))
    (predicted / "3-edited.png").unlink()
    with pytest.raises(UserError, match=r"edited.png does not exist"):
        score.run(predicted, judge=JudgeConfig(judge.url))


def test_what_the_judge_said_is_kept_under_its_sample(
    predicted: Path, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the raw answers against those of a neighbour, also when they come from the cache."""
    monkeypatch.setattr(score, "WINDOW", 2)
    for row in range(5):
        judge.answers[f"change number {row}"] = f'{{"score": [{row}, 8], "reasoning": "seen {row}"}}'
    judge.answers["change number 3"] = "No."
    for _ in range(2):
        rows = scored(predicted, judge)
        said = [row.answers["sc"] for row in rows]
        assert said == [judge.answers[f"change number {row}"] for row in range(5)]
        assert all(json.loads(row.answers["pq"])["score"] == [9, 9] for row in rows)


def test_statistics_have_the_published_names(predicted: Path, judge: FakeJudge) -> None:
    """Guards the published file, and against failures that lower its means."""
    judge.answers = {f"change number {row}": f'{{"score": [{row * 2}, 9]}}' for row in range(5)}
    judge.answers["change number 0"] = "No."
    scored(predicted, judge)
    stats = json.loads((predicted / "m_viescore_stats.json").read_text())
    names = ["VIE_SC", "VIE_PQ", "VIE_ALL", "EDIT_SUCCESS", "OVEREDIT", "LOOKS_NATURAL", "NO_ARTIFACT"]
    assert [name for name in stats if isinstance(stats[name], dict) and set(stats[name]) == {"mean", "std"}] == names
    assert (stats["n"], stats["failed"]) == (4, 1)
    assert stats["VIE_SC"]["mean"] == 5.0 and stats["OVEREDIT"]["mean"] == 9.0
    assert stats["EDIT_SUCCESS"]["std"] == pytest.approx(math.sqrt(5))
    assert stats["VIE_ALL"]["mean"] == pytest.approx(sum(math.sqrt(2 * row * 9) for row in range(1, 5)) / 4)
    assert stats["per_source"]["north"]["n"] == 1 and stats["per_source"]["south"]["VIE_SC"]["mean"] == 6.0
    assert set(stats["per_task_type"]) == {"colour", "counting"}


def test_other_predictions_need_another_file(predicted: Path, judge: FakeJudge) -> None:
    """Guards against scores of images that are no longer there."""
    scored(predicted, judge)
    rows = read_records(predicted / "predictions.parquet", Prediction)
    write_records(predicted / "predictions.parquet", rows[:3], {})
    with pytest.raises(UserError, match="holds a run with predictions="):
        scored(predicted, judge)


def test_the_same_judge_is_asked_anew_with_another_seed(predicted: Path, judge: FakeJudge, tmp_path: Path) -> None:
    """Guards test-retest: answers of the first time must not come back from the cache."""
    scored(predicted, judge)
    asked = judge.questions
    score.run(predicted, judge=JudgeConfig(judge.url, seed=1, temperature=0.7), output=tmp_path / "again.parquet")
    assert judge.questions == 2 * asked
    assert read_settings(tmp_path / "again.parquet")["judge_seed"] == 1


def test_older_scores_continue_and_other_settings_do_not(predicted: Path, judge: FakeJudge) -> None:
    """Guards scores from before the image format could be set, and a file that mixes two of them."""
    scored(predicted, judge)
    file = predicted / "scores.parquet"
    later = ("judge_image_format", "judge_max_tokens")
    settings = {key: value for key, value in read_settings(file).items() if key not in later}
    write_records(file, read_records(file, ScoredSample), settings)
    with pytest.raises(UserError, match='judge_image_format="png", this one has judge_image_format="jpeg"'):
        score.run(predicted, judge=JudgeConfig(judge.url, image_format="jpeg"))
    asked = judge.questions
    scored(predicted, judge)
    assert judge.questions == asked and {*later} <= read_settings(file).keys()


def test_the_flags_of_the_judge_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards flags that scripts give, and a cache that lands beside the predictions though another was named."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(score, "run", lambda **arguments: seen.append(arguments))
    words = "--predictions p --judge-url u --judge-model m --judge-seed 1 --judge-temperature 0.7 --prompts c --cache k"
    for given in (words, "--predictions p --metrics l1"):
        monkeypatch.setattr("sys.argv", ["score", *given.split()])
        score.main()
    named, nobody = seen
    assert named["judge"] == JudgeConfig("u", "m", "c", seed=1, temperature=0.7, cache="k")
    assert named.keys() == nobody.keys() and nobody["judge"] is None


def test_usage_is_noted_when_something_was_sent(predicted: Path, judge: FakeJudge) -> None:
    """Guards the bill: a second run costs no judge call and adds no line."""
    for _ in range(2):
        scored(predicted, judge)
    [line] = (predicted / "usage.jsonl").read_text().splitlines()
    usage = json.loads(line)
    assert (usage["judge"], usage["questions"], usage["answered_before"], usage["requests"]) == ("fake", 10, 0, 10)


def test_cost_needs_tokens_and_prices() -> None:
    """Guards against a cost of zero where nobody counted."""
    counters = dict.fromkeys(("asks", "cache_hits", "shared", "retries", "reasks"), 0.0) | {"asks": 4.0, "retries": 1.0}
    assert usage_of("j", counters, (0.15, 0.6)).usd is None
    tokens = counters | {"prompt_tokens": 2e6, "completion_tokens": 1e6}
    assert usage_of("j", tokens, None).usd is None
    usage = usage_of("j", tokens, (0.15, 0.6))
    assert usage.usd == pytest.approx(0.9) and usage.requests == 5


def test_the_pace_holds_and_does_not_slow_the_cache() -> None:
    """Guards a provider's limit, which counts repeated requests too, and a second run that asks nothing."""
    now = 0.0
    counters = dict.fromkeys(("cache_hits", "shared", "retries", "reasks"), 0.0)

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(60, lambda: counters, clock=lambda: now, sleep=sleep)
    for _ in range(10):
        pace.wait()
    assert now == pytest.approx(18, abs=0.1)  # two questions a second apart; the first pair goes at once
    counters["retries"] = 5
    pace.wait()
    assert now == pytest.approx(25, abs=0.1)
    counters["cache_hits"] = 22
    for _ in range(3):
        pace.wait()
        counters["cache_hits"] += 2
    assert now == pytest.approx(25, abs=0.1)


def test_a_paced_run_gets_all_its_scores(predicted: Path, judge: FakeJudge) -> None:
    output = score.run(predicted, judge=JudgeConfig(judge.url), requests_per_minute=60_000)
    assert [row.status for row in read_records(output, ScoredSample)] == ["score"] * 5


@pytest.mark.parametrize("field", ["source", "edited", "target", "mask"])
@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.png", "a/../../secret.png", "C:\\x.png", "..\\x.png", ""])
def test_predictions_that_lead_out_of_their_folder_are_refused(
    predicted: Path, judge: FakeJudge, field: str, name: str
) -> None:
    """Guards: a predictions file from elsewhere, by which any image of this machine is sent to a judge or shown."""
    noise(1).save(predicted.parent / "secret.png")
    rows = read_records(predicted / "predictions.parquet", Prediction)
    rows[2] = replace(rows[2], **{field: name})
    write_records(predicted / "predictions.parquet", rows, {})
    with pytest.raises(UserError, match=r"sample 'sample-2': its image .* lies outside of the file's folder"):
        scored(predicted, judge)
    assert judge.questions == 0


@pytest.mark.parametrize("rows", [5, 300])
def test_a_judge_that_refuses_everything_ends_the_command(predicted: Path, judge: FakeJudge, rows: int) -> None:
    """Guards: every question refused, exit code 0, and a file full of failures."""
    whole = read_records(predicted / "predictions.parquet", Prediction)
    many = [replace(whole[place % 4], id=str(place), instruction=f"do {place}") for place in range(rows)]
    write_records(predicted / "predictions.parquet", many, {})
    judge.refuse = "Unsupported parameter: 'max_tokens' is not supported with this model."
    with pytest.raises(
        UserError, match=r"refused the first \d of \d+ samples: HTTP 400: Unsupported parameter"
    ) as caught:
        scored(predicted, judge)
    assert "--judge-omit" in str(caught.value)
    assert not (predicted / "scores.parquet").exists()
    assert judge.questions <= 200


def test_a_judge_that_never_gives_a_score_ends_the_command(predicted: Path, judge: FakeJudge) -> None:
    """Guards: a benchmark without one score, exit code 0, and a pipeline that goes on to its tables."""
    judge.answers = {f"change number {row}": "I would rather talk about the weather." for row in range(5)}
    with pytest.raises(UserError, match="no sample of 5 has a score: unparsable: I would rather"):
        scored(predicted, judge)
    assert [row.value for row in read_records(predicted / "scores.parquet", ScoredSample)] == [None] * 5
    judge.answers = {}
    assert [row.value for row in scored(predicted, judge)] == [9.0] * 5


def test_the_servers_reason_stands_in_the_file(predicted: Path, judge: FakeJudge) -> None:
    """Guards: "unparsable" without a reason, for a judge that was cut off while it thought."""
    judge.answers = {"change number 1": '<think>Perhaps {"score": [3, 3]}. Wait'}
    judge.finish_reason = "length"
    rows = scored(predicted, judge)
    assert (rows[1].status, rows[1].value) == ("unparsable", None)
    assert (rows[1].detail or "").startswith("cut off at max_tokens (1400) while thinking; <think>")
    assert [row.status for row in rows].count("score") == 4


def test_the_servers_name_of_the_model_is_kept(predicted: Path, judge: FakeJudge) -> None:
    """Guards an alias, behind which the model changes from month to month; also where replies come from the cache."""
    judge.served = "gpt-4o-mini-2024-07-18"
    for _ in range(2):
        score.run(predicted, judge=JudgeConfig(judge.url))
        settings = read_settings(predicted / "scores.parquet")
        assert settings["judge_served"] == ["gpt-4o-mini-2024-07-18"] and settings["judged_on"]
        (predicted / "scores.parquet").unlink()
