"""The command around the plan: which steps it runs, in which order, and when it runs none."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from rich.console import Console

from baselines.reproduce import __main__ as command
from baselines.reproduce import progress
from baselines.reproduce.plan import cells_of
from baselines.reproduce.progress import Progress
from emu3.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The modules that were run, each with its arguments; none of them does anything."""
    made: list[list[str]] = []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        made.append(words[2:])
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(progress.subprocess, "run", run)
    return made


@pytest.fixture
def folder(tmp_path: Path, make_data: Callable[..., Path]) -> Path:
    """Two benchmarks of three rows, a model's folder and a list of two models."""
    (tmp_path / "data").mkdir()
    (tmp_path / "model").mkdir()
    data = make_data(3, source=["ag"] * 3)
    for name in ("aurora", "magicbrush"):
        shutil.copy(data, tmp_path / f"data/{name}.parquet")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).touch()
    (tmp_path / "models.txt").write_text(
        f"# NAME EDITOR\n\nfloor no-edit\nearl emu3 --model {tmp_path}/model --think\n"
    )
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, judge: FakeJudge, *more: str, **given: str) -> None:
    flags = {"models": f"{folder}/models.txt", "results": f"{folder}/results", "data-dir": f"{folder}/data"}
    flags |= {"judge-url": judge.url} | given
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    benchmarks = [] if "--benchmarks" in more else ["--benchmarks", "aurora"]
    monkeypatch.setattr("sys.argv", ["reproduce", *words, *benchmarks, *more])
    command.main()


def test_every_model_meets_every_benchmark(
    folder: Path, judge: FakeJudge, steps: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the order of the steps, the list with its comments, and options that reach their model only."""
    more = ("--benchmarks", "aurora", "magicbrush", "--reference", "floor", "--", "--limit", "2")
    call(monkeypatch, folder, judge, *more)
    modules = [words[0].removeprefix("baselines.") for words in steps]
    assert modules == ["evaluate", "score"] * 4 + ["table", "paper_tables", "report"]
    evaluated = [words for words in steps if words[0] == "baselines.evaluate"]
    assert [(words[words.index("--name") + 1], words[words.index("--benchmark") + 1]) for words in evaluated] == [
        (model, benchmark) for model in ("floor", "earl") for benchmark in ("aurora", "magicbrush")
    ]
    assert all(("--think" in words) == ("earl" in words) and words[-2:] == ["--limit", "2"] for words in evaluated)
    runs = [f"{benchmark}/{model}-seed0" for model in ("floor", "earl") for benchmark in ("aurora", "magicbrush")]
    assert steps[8][2:6] == [f"{folder}/results/{run}/scores.parquet" for run in runs]
    assert steps[8][-2:] == steps[10][-2:] == ["--reference", "floor"]


def test_a_plan_is_no_run(
    folder: Path,
    judge: FakeJudge,
    steps: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Guards `--plan`, and what it says where nothing is known: no price, no rule for an image, no rate."""
    call(monkeypatch, folder, judge, "--plan")
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.split()}
    assert rows["floor"] == ["3", "0", "6", "unknown", "–", "0.00", rows["floor"][-1]]
    assert rows["earl"][:6] == ["3", "0", "6", "unknown", "–", "unknown"]
    assert rows["all"][:6] == ["6", "0", "12", "unknown", "–", "unknown"]
    assert "no price given" in said and "JUDGE_IMAGE_TOKENS" in said and "SECONDS_PER_IMAGE" in said
    assert "1400 tokens each, at most: 16,800 tokens" in said
    assert steps == [] and judge.questions == 0 and not (folder / "results").exists()

    known = {"judge-image-tokens": "100", "seconds-per-image": "3600", "reply-tokens": "50"}
    call(monkeypatch, folder, judge, "--plan", "--usd-per-million-tokens", "1000000", "2000000", **known)
    said = capsys.readouterr().out
    row = next(line.split() for line in said.splitlines() if line.startswith("all"))
    text = 1500 < int(row[4].replace(",", "")) - 18 * 100 < 12 * 400
    assert text and float(row[5]) == int(row[4].replace(",", "")) + 2 * 12 * 50 and row[6] == "3.00"


def test_all_that_is_missing_is_said_at_once(
    folder: Path,
    judge: FakeJudge,
    steps: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Guards days of sampling before the line that says that there is no key; the key itself is never shown."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (folder / "model/model.safetensors").unlink()
    (folder / "models.txt").open("a").write("mine folder --images nowhere\nother omnigen --think\n")
    (folder / "data/magicbrush.parquet").unlink()
    more = ("--benchmarks", "aurora", "magicbrush")
    address = {"judge-url": "https://api.openai.com/v1", "judge-model": "gpt-4o-mini-2024-07-18"}
    with pytest.raises(UserError, match=r"5 things are missing, nothing was made or asked; the first: "):
        call(monkeypatch, folder, judge, *more, **address)
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing: ")]
    for words in (
        "mine on aurora: folder nowhere of finished images does not exist",
        "other on aurora: editor omnigen does not take --think",
        f"benchmark magicbrush: {folder}/data holds neither a folder magicbrush nor files magicbrush*.parquet",
        f"checkpoint: {folder}/model has no *.safetensors",
        "judge: OPENAI_API_KEY is not set, which api.openai.com asks for",
    ):
        assert sum(words in line for line in missing) == 1, words
    assert len(missing) == 5 and steps == []


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("", False), ("no", False)])
def test_a_person_is_asked(
    answer: str, goes_on: bool, folder: Path, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the question on a terminal, and that `--yes` leaves it out."""
    asked: list[str] = []
    made: list[object] = []

    def reply(question: str) -> str:
        asked.append(question)
        return answer

    monkeypatch.setattr("builtins.input", reply)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(command, "make", lambda *given: made.append(given))
    call(monkeypatch, folder, judge)
    assert len(asked) == 1 and len(made) == goes_on
    call(monkeypatch, folder, judge, "--yes")
    assert len(asked) == 1 and len(made) == goes_on + 1


def test_a_list_says_what_is_wrong_with_it(
    folder: Path, judge: FakeJudge, steps: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "models.txt").write_text("floor no-edit\nearl painter\n")
    with pytest.raises(UserError, match=r"models.txt, line 2: expected NAME EDITOR"):
        call(monkeypatch, folder, judge)
    with pytest.raises(UserError, match="no benchmark 'paint'; there are data, omniedit"):
        call(monkeypatch, folder, judge, "--benchmarks", "paint")


def test_the_table_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Guards counts that follow a step while it runs, its words in the log, and the last of them where it fails."""
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda: Console(file=screen, force_terminal=True, width=100))
    cells = cells_of(folder / "models.txt", ["aurora", "magicbrush"], folder / "results", 0, [], [])
    first = cells[0].folder
    first.mkdir(parents=True)
    step = f"import pathlib, sys, time; print('made'); f = pathlib.Path({str(first)!r}) / 'rows-0.jsonl'; " + (
        "f.write_text('{}\\n{}\\n'); time.sleep(2)"
    )
    with Progress(cells, folder / "results", {cell.folder: 3 for cell in cells}) as shown:
        assert shown.run(cells[0], "evaluate", [sys.executable, "-c", step], dict(os.environ)) == 0
        shown.finished(cells[0])
        broken = [sys.executable, "-c", "import sys; sys.exit('error: no such thing')"]
        assert shown.run(cells[0], "score", broken, dict(os.environ)) == 1
    text = screen.getvalue()
    assert "2 / 0 / 0" in text and "floor on aurora: evaluate" in text and "left of this step" in text
    assert "magicbrush" in text and "earl" in text
    assert (folder / "results/log.txt").read_text() == "made\nerror: no such thing\n"
    assert capfd.readouterr().err == "made\nerror: no such thing\n".removeprefix("made\n")
