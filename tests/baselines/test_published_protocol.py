"""Scores by the published protocol: its words, its images, and nothing else under its name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_judge import FakeJudge
from noise_images import noise

from baselines import score
from baselines.results.records import Prediction, ScoredSample, read_records, read_settings, write_records
from emu3.errors import UserError
from rl.reward.cache import image_of
from rl.reward.config import JudgeConfig


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A stand-in for a checkout of VIEScore: the files that are read, with other words."""
    raw = tmp_path / "VIEScore/viescore/prompts_raw"
    (raw / "prompts_0shot").mkdir(parents=True)
    (raw / "context_no_delimit.txt").write_text("context")
    (raw / "prompts_0shot/two_image_edit_rule.txt").write_text("two images")
    (raw / "prompts_0shot/tie_rule_SC.txt").write_text("Editing instruction: <instruction>\n")
    (raw / "prompts_0shot/rule_PQ.txt").write_text("one image")
    return tmp_path / "VIEScore"


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["score", *map(str, words)])
    score.main()


@pytest.mark.parametrize("inner", ["", "viescore", "viescore/prompts_raw", "viescore/prompts_raw/prompts_0shot"])
def test_the_published_protocol(
    predicted: Path, judge: FakeJudge, checkout: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    """Guards each part of what "published" means: judge, wording, parser, temperature, format, source, two rounds."""
    rows = read_records(predicted / "predictions.parquet", Prediction)
    noise(77, 20, 18).save(predicted / "whole.png")
    rows[0] = replace(rows[0], source_uncropped="whole.png")
    write_records(predicted / "predictions.parquet", rows, {"editor": "emu3", "seed": 5, "options": {}})
    judge.name = "gpt-4o-mini-2024-07-18"
    judge.answers = {
        "change number 0": 'draft <think> {"score": [4, 9]} unfinished',
        "change number 1": "no",
        "change number 2": '{"score": [4, 9], "reasoning": 1} {"score": [4, 9]}',
    }
    common = ("--predictions", predicted, "--judge-url", judge.url, "--protocol", "published")
    command(monkeypatch, *common, "--prompts", checkout / inner)
    found = read_records(predicted / "scores.parquet", ScoredSample)
    assert [row.status for row in found] == ["score", "unparsable", "unparsable", "score", "score"]
    assert found[0].parts["sc"] == 4  # a draft, which our own rules would not read
    bodies = judge.bodies
    assert all("temperature" not in body and body["max_tokens"] == 1400 for body in bodies)
    edits = [body for body in bodies if len(body["messages"][0]["content"]) == 3]
    assert len(edits) == 5 + 2  # the two that could not be read were asked twice in all
    assert all(
        "context\ntwo images\nEditing instruction: change" in b["messages"][0]["content"][0]["text"] for b in edits
    )
    first = next(b for b in edits if "number 0" in b["messages"][0]["content"][0]["text"])
    sizes = [image_of(part["image_url"]["url"]).size for part in first["messages"][0]["content"][1:]]
    assert sizes == [(20, 18), (16, 16)]
    assert all(part["image_url"]["url"].startswith("data:image/jpeg") for part in first["messages"][0]["content"][1:])
    settings = read_settings(predicted / "scores.parquet")
    assert (settings["judge"], settings["protocol"]) == ("gpt-4o-mini-2024-07-18", "published")
    assert settings["evaluation"] == {"editor": "emu3", "seed": 5, "options": {}}
    with pytest.raises(UserError, match="holds a run with"):
        score.run(predicted, judge=JudgeConfig(judge.url, prompts=str(checkout)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "git clone https://github.com/TIGER-AI-Lab/VIEScore, then give --prompts VIEScore"),
        (("--prompts", "CHECKOUT", "--judge-temperature", "0"), "has --judge-temperature None, not 0.0"),
        (("--prompts", "CHECKOUT", "--judge-image-format", "png"), "has --judge-image-format jpeg, not png"),
        (("--prompts", "CHECKOUT", "--judge-reasks", "2"), "has --judge-reasks 1, not 2"),
        (("--prompts", "CHECKOUT", "--judge-omit", "max_tokens"), "a limit of tokens"),
        (("--prompts", "."), "is no folder of a VIEScore checkout"),
    ],
)
def test_what_is_not_the_published_protocol_is_refused(
    predicted: Path,
    judge: FakeJudge,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
) -> None:
    """Guards numbers under the name of a protocol that they were not made by; nothing is asked."""
    monkeypatch.chdir(tmp_path / "out")
    given = [str(checkout) if word == "CHECKOUT" else word for word in words]
    with pytest.raises(UserError, match=re.escape(message)):
        command(monkeypatch, "--predictions", predicted, "--judge-url", judge.url, "--protocol", "published", *given)
    assert judge.questions == 0 and not (predicted / "scores.parquet").exists()


def test_predictions_of_an_earlier_version_have_no_published_protocol(
    predicted: Path, judge: FakeJudge, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards cropped sources in place of the whole ones that the published evaluation showed."""
    file = predicted / "predictions.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["source_uncropped"]), file)
    common = ("--predictions", predicted, "--judge-url", judge.url, "--prompts", checkout)
    with pytest.raises(UserError, match=r"run baselines\.evaluate anew"):
        command(monkeypatch, *common, "--protocol", "published")
    command(monkeypatch, *common)
