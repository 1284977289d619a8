"""The whole way from models to the report on photographs by one command, killed in each step and called again.

Four editors (none, a tiny Emu3, two tiny diffusers pipelines), the embedded judge, every file that a reviewer would
read. Nothing is learned here: the judge scores pixel statistics.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from baselines.results.records import Prediction, ScoredSample, read_records
from shapes.any_image import score_edit, score_quality
from shapes.judge_server import ANY_IMAGE, WorldJudge
from shapes.verifier import Verdict

pytest.importorskip("diffusers", reason="the extra eval is not installed")
from served_judge import Served
from tiny_emu3 import save_emu3
from tiny_pipelines import save_pix2pix
from warm_ranks import warm_python

ROOT = Path(__file__).parents[2]
AURORA = ROOT / "../shared/data/aurora-bench-dev.parquet"
ROWS = 3
MODELS = ("floor", "emu3", "ip2p", "aurora")
LIBRARIES = (
    *("torch", "transformers", "diffusers", "aiohttp", "jinja2", "matplotlib.figure", "pyarrow.parquet"),
    *("emu3.mllm.editor", "rl.reward.scorer", "baselines.metrics.pixel", "baselines.editors.emu3_editor"),
    *("baselines.editors.diffusers_editors", "diffusers.pipelines.stable_diffusion"),
)

KILLED = 128 + signal.SIGKILL
# Where to be killed, as warm_python has it; sync is called twice for a file, before and after it gets its name.
IN_A_BATCH = "baselines.evaluate --editor instruct-pix2pix|baselines.results.predictions:SampleLog.append|2"
BETWEEN_ANSWERS = "ip2p-seed0 --metrics|rl.reward.cache:ReplyCache.put|2"
BETWEEN_TABLES = "baselines.table|emu3.files:sync|3"
IN_THE_PAGE = "baselines.report|emu3.files:sync|1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AURORA.exists(), reason="the AURORA-Bench sample is not here"),
]


class Counting:
    """The embedded judge for any image; `questions` are those that it was asked."""

    def __init__(self, address_file: Path) -> None:
        self.questions = 0
        self._lock = threading.Lock()
        self._server = Served(WorldJudge(ANY_IMAGE.model, self._edit, self._quality), address_file)
        self.url = self._server.url
        self.close = self._server.close

    def _edit(self, instruction: str, source: Image.Image, edited: Image.Image) -> Verdict:
        self._count()
        return score_edit(instruction, source, edited)

    def _quality(self, edited: Image.Image) -> Verdict:
        self._count()
        return score_quality(edited)

    def _count(self) -> None:
        with self._lock:
            self.questions += 1


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[Counting]:
    judge = Counting(tmp_path / "judge.url")
    yield judge
    judge.close()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A folder with the scripts, a Python that can be killed, the models, the data and a list of four editors."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/aurora.parquet").symlink_to(AURORA.resolve())
    ours, theirs = save_emu3(AURORA, tmp_path / "emu3"), save_pix2pix(tmp_path / "pix2pix/model")
    (tmp_path / "models.txt").write_text(
        "floor no-edit\n"
        f"emu3 emu3 --model {ours}/model --vision {ours}/vision --batch-size 2\n"
        f"ip2p instruct-pix2pix --model {theirs} --steps 1 --batch-size 2\n"
        f"aurora aurora --model {theirs} --steps 2 --batch-size 2\n"
    )
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with warm_python(tmp_path / ".venv/bin", LIBRARIES, os.environ | variables):
        yield tmp_path


def call(checkout: Path, judge: Counting, place: str, die: str = "") -> int:
    """The command into `place/results`; `die`: where it is killed. Returns its exit code."""
    variables = {
        "GPUS": "0",
        "RESULTS": str(checkout / place / "results"),
        "MODELS": str(checkout / "models.txt"),
        "BENCHMARKS": "aurora",
        "DATA_DIR": str(checkout / "data"),
        "METRICS": "viescore l1 psnr",
        "JUDGE_URL": judge.url,
        "JUDGE_MODEL": "",
        "PROTOCOL": "ours",
        "REFERENCE": "floor",
        "DIE": die,
    }
    command = ["bash", str(checkout / "scripts/reproduce_tables.sh"), "--limit", str(ROWS), "--image-area", "2304"]
    done = subprocess.run(command, env=os.environ | variables, cwd=checkout, capture_output=True, text=True)
    assert done.returncode in (0, KILLED), done.stderr
    return done.returncode


def readable(results: Path) -> dict[str, bytes]:
    """All that a person reads or sees, by path: pages, tables, images, statistics per model."""
    kinds = (".md", ".csv", ".tex", ".html", ".png", ".jpg", ".webp", ".json")
    files = [file for file in results.rglob("*") if file.suffix in kinds and not file.name.startswith(".")]
    return {file.relative_to(results).as_posix(): file.read_bytes() for file in sorted(files)}


def kept(results: Path) -> int:
    """Answers of the judge that are on disk."""
    return sum(len(file.read_bytes().splitlines()) for file in results.rglob("answers.jsonl"))


def rows(results: Path, file: str, kind: type[Any]) -> list[dict[str, Any]]:
    """The rows of all models without the one field that tells a time."""
    found = [asdict(row) for model in MODELS for row in read_records(results / f"aurora/{model}-seed0/{file}", kind)]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_killed_in_every_step_it_ends_alike(checkout: Path, judge: Counting) -> None:
    """Guards resumption where it counts: inside a batch, between two answers, in the middle of writing the tables and
    the report, with the models and the judge of a real run. Nothing is asked twice, and nothing that a reader sees
    tells that there was an interruption."""
    assert call(checkout, judge, "whole") == 0
    whole = checkout / "whole/results"
    asked = judge.questions
    assert 0 < asked <= 2 * ROWS * len(MODELS)

    before = readable(whole)
    assert {"table.md", "report.html", "paper/tables.md"} <= before.keys()
    assert call(checkout, judge, "whole") == 0
    assert judge.questions == asked and readable(whole) == before

    cut = checkout / "cut/results"
    for die in (IN_A_BATCH, BETWEEN_ANSWERS):
        assert call(checkout, judge, "cut", die) == KILLED
    assert not (cut / "aurora/ip2p-seed0/scores.parquet").exists()
    at_death, answered = judge.questions, kept(cut)
    assert at_death - asked > answered, "no question was under way"
    for die in (BETWEEN_TABLES, IN_THE_PAGE):
        assert call(checkout, judge, "cut", die) == KILLED
    assert not (cut / "report.html").exists()
    assert call(checkout, judge, "cut") == 0

    assert judge.questions - at_death == asked - answered
    assert readable(cut).keys() == before.keys()
    assert [name for name, data in readable(cut).items() if data != before[name]] == []
    assert rows(cut, "predictions.parquet", Prediction) == rows(whole, "predictions.parquet", Prediction)
    scores = rows(cut, "scores.parquet", ScoredSample)
    assert scores == rows(whole, "scores.parquet", ScoredSample)
    assert {(row["model"], row["metric"]) for row in scores if row["status"] == "score"} >= {
        (model, "viescore") for model in MODELS
    }
    assert json.loads((cut / "summary.json").read_text())[0]["n"] == ROWS
