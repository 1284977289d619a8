"""One command from models to tables, interrupted and called again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_judge import FakeJudge
from noise_images import IMAGE, noise, png

ROOT = Path(__file__).parents[2]


def call(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"GPUS": "0", "RESULTS": str(folder / "results")} | variables
    command = ["bash", str(folder / "scripts/reproduce_tables.sh"), *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the scripts alone, and a list of two models."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "models.txt").write_text("# NAME EDITOR\n\nfloor no-edit\nearl emu3 --model a/b --think\n")
    return tmp_path


@pytest.fixture
def noting_python(checkout: Path) -> Path:
    """A Python that notes how it was called, one argument per line."""
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" end-of-call >> {checkout}/calls\n')
    python.chmod(0o755)
    return checkout / "calls"


def words_of(noting_python: Path) -> list[str]:
    """The one call of Python, and that it was of the command behind the script."""
    [call] = noting_python.read_text().split("end-of-call\n")[:-1]
    words = call.strip("\n").split("\n")
    assert words[:2] == ["-m", "baselines.reproduce"]
    return words[2:]


def test_variables_and_arguments_reach_their_commands(checkout: Path, noting_python: Path) -> None:
    """Guards lists, what is this script's own among the arguments, and what is evaluation's."""
    done = call(
        checkout,
        *("--limit", "5", "--plan"),
        PROTOCOL="ours",
        MODELS=f"{checkout}/models.txt",
        BENCHMARKS="aurora vismin",
        REFERENCE="floor",
        USD_PER_MILLION_TOKENS="0.15 0.6",
        SECONDS_PER_IMAGE="2",
    )
    assert done.returncode == 0, done.stderr
    words = words_of(noting_python)
    assert words[-3:] == ["--", "--limit", "5"] and "--plan" in words[:-3]
    given = {"--models": f"{checkout}/models.txt", "--reference": "floor", "--seconds-per-image": "2"}
    given |= {"--judge-model": "gpt-4o-mini-2024-07-18", "--protocol": "ours", "--gpus": "0", "--metrics": "viescore"}
    assert all(words[words.index(flag) + 1] == value for flag, value in given.items())
    assert words[words.index("--benchmarks") + 1 :][:3] == ["aurora", "vismin", "--metrics"]
    assert words[words.index("--usd-per-million-tokens") + 1 :][:2] == ["0.15", "0.6"]
    assert "--prompts" not in words and "--yes" not in words


def test_the_published_protocol_is_the_default_and_needs_its_words(checkout: Path, noting_python: Path) -> None:
    """Guards hours of sampling before the line that says what is missing; and settings that do not reach the judge."""
    done = call(checkout, MODELS=f"{checkout}/models.txt")
    assert done.returncode == 2 and not noting_python.exists()
    [line] = done.stderr.splitlines()
    assert "git clone https://github.com/TIGER-AI-Lab/VIEScore" in line and "PROTOCOL=ours" in line
    settings = {"IMAGE_FORMAT": "jpeg", "TEMPERATURE": "none", "DEADLINE": "30", "CONCURRENCY": "8"}
    done = call(
        checkout,
        MODELS=f"{checkout}/models.txt",
        BENCHMARKS="aurora",
        PROMPTS="VIEScore",
        **{f"JUDGE_{name}": value for name, value in settings.items()},
    )
    assert done.returncode == 0, done.stderr
    words = words_of(noting_python)
    given = {"--protocol": "published", "--prompts": "VIEScore"}
    given |= {f"--judge-{name.lower().replace('_', '-')}": value for name, value in settings.items()}
    assert all(words[words.index(flag) + 1] == value for flag, value in given.items())
    noting_python.unlink()
    without_judge = call(checkout, MODELS=f"{checkout}/models.txt", BENCHMARKS="aurora", METRICS="l1 psnr")
    assert without_judge.returncode == 0, without_judge.stderr
    words = words_of(noting_python)
    assert words[words.index("--metrics") + 1 :][:3] == ["l1", "psnr", "--results"]


def test_help_is_the_scripts_own(checkout: Path, noting_python: Path) -> None:
    """Guards the flags and every variable of the script, each with what it is."""
    done = call(checkout, "--limit", "5", "--help")
    assert done.returncode == 0 and not noting_python.exists()
    script = (checkout / "scripts/reproduce_tables.sh").read_text()
    variables = re.findall(r"^([A-Z_]+)=\$\{", script, re.MULTILINE)
    assert len(variables) > 15 and "#!" not in done.stdout
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("  ")}
    assert all(len(lines[name]) > 2 for name in [*variables, "--plan", "--yes", "--help"])
    assert " ".join(lines["JUDGE_IMAGE_FORMAT"]) == "JUDGE_IMAGE_FORMAT png or jpeg; empty here and below: " + (
        "what the protocol has"
    )
    assert "[published]" in lines["PROTOCOL"]


def test_the_models_of_the_paper_are_known_by_their_rows() -> None:
    """Guards names: a row of the list that no table knows would be computed for nothing."""
    from baselines.editors.editing import EDITORS
    from baselines.tables.paper import row_of

    lines = (ROOT / "scripts/paper_models.txt").read_text().splitlines()
    models = [line.split() for line in lines if line and not line.startswith("#")]
    assert [words[0] for words in models if row_of(words[0]) is None] == ["no-edit"]
    assert all(words[1] in EDITORS for words in models)


@pytest.mark.slow
def test_again_costs_nothing_and_changes_nothing(checkout: Path, judge: FakeJudge) -> None:
    """Guards resumption from start to end with the real steps: a run that was cut off in the middle of the second model
    ends like one that was not, and asks nothing that was answered."""
    images = pa.array([{"bytes": png(noise(row, 32, 24)), "path": None} for row in range(4)], IMAGE)
    columns = {
        "input": images,
        "output": images,
        "instruction": list("abcd"),
        "source": ["ag", "ag", "epic", "epic"],
    }
    (checkout / "data/aurora").mkdir(parents=True)
    pq.write_table(pa.table(columns), checkout / "data/aurora/test.parquet")
    (checkout / "models.txt").write_text("floor no-edit\nearl ground-truth\n")
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    variables = {
        "MODELS": f"{checkout}/models.txt",
        "BENCHMARKS": "aurora",
        "DATA_DIR": f"{checkout}/data",
        "JUDGE_URL": judge.url,
        "JUDGE_MODEL": "",
        "PROTOCOL": "ours",
        "REFERENCE": "floor",
    }
    done = call(checkout, **variables)
    assert done.returncode == 0, done.stderr
    names = ("table.md", "table.csv", "report.html", "paper/tables.md", "aurora/earl-seed0/scores.parquet")
    results = checkout / "results"
    before = {name: (results / name).read_bytes() for name in names}
    assert "| `earl` | ours | – | – | 9.00 |" in before["table.md"].decode()

    # As if it had been cut off after the first answers about the second model.
    asked = judge.questions
    run = results / "aurora/earl-seed0"
    (run / "scores.parquet").unlink()
    kept = (run / "answers.jsonl").read_text().splitlines(keepends=True)
    (run / "answers.jsonl").write_text("".join(kept[:3]) + kept[3][:20])
    assert call(checkout, **variables).returncode == 0
    assert judge.questions == asked + len(kept) - 3
    assert {name: (results / name).read_bytes() for name in names} == before
