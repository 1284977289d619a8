"""The commands of the quickstart on real photographs: tokenize, SFT, GRPO and its resume, evaluate, score, report.

Nothing is learned here. Guards every place that would quietly count on 48x32 pixels, on a target in each row, or on
an instruction that the judge understands.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served_judge import Served
from tiny_vision import save_tiny_vision

from emu3.errors import UserError
from shapes.judge_server import ANY_IMAGE, VERIFIER

ROOT = Path(__file__).parents[2]
AURORA = ROOT / "../shared/data/aurora-bench-dev.parquet"
AREA = 48 * 48

pytestmark = pytest.mark.skipif(not AURORA.exists(), reason="the AURORA-Bench sample is not here")

Command = Callable[..., None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `python -m name arguments` in this process."""

    def start(name: str, *arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        importlib.import_module(name).main()

    return start


@pytest.fixture
def checkpoints(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a vision tokenizer and language model without training, and the first rows' codes."""
    save_tiny_vision(tmp_path / "vision")
    model = ("--output-dir", tmp_path / "init", "--layers", 1, "--width", 32)
    command("shapes.new_model", "--data", AURORA, "--vision", tmp_path / "vision", *model)
    command(
        "emu3.train_image_editing.prepare_data",
        *("--dataset-name", AURORA, "--source", "local", "--limit", 16, "--image-area", AREA),
        *("--output-path", tmp_path / "codes", "--model-path", tmp_path / "vision", "--task-key", "source"),
        *("--original-image-key", "input", "--edited-image", "output", "--edit-instruction", "instruction"),
    )
    return tmp_path


def reinforce(command: Command, folder: Path, judge: Served, model: str, monkeypatch: Any, *more: str) -> list[Any]:
    """GRPO by the world's own configuration; returns the lines of its metrics."""
    monkeypatch.setenv("APP__BASE_EXP_DIR", str(folder))
    monkeypatch.setenv("APP__DATA_DIR", str(folder))
    monkeypatch.setenv("APP__REWARD_FUNCTION_API_BASE", judge.url)
    command(
        "rl.train",
        ROOT / "rl/configs/shapes.jsonnet",
        *("run_name=rl", f"model={folder / model}", f'data.sets=["{folder / "codes"}"]', "save_every=1"),
        *("rollout.prompts_per_step=2", "rollout.group_size=3", *more),
    )
    return [json.loads(line) for line in (folder / "rl" / "metrics.jsonl").read_text().splitlines()]


def test_the_whole_path(checkpoints: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints
    command(
        "emu3.train_image_editing.sft",
        *("--model_name_or_path", folder / "init", "--train_data", folder / "codes", "--output_dir", folder / "sft"),
        *("--max_steps", 2, "--per_device_train_batch_size", 2, "--use_cpu", "--disable_tqdm", "True"),
    )
    judge = Served(ANY_IMAGE, folder / "judge.url")
    try:
        for steps in (1, 2):
            lines = reinforce(command, folder, judge, "sft/final", monkeypatch, f"steps={steps}")
        assert [line["step"] for line in lines] == [0, 1]
        assert all(line["failed"] == 0 and line["grad_norm"] > 0 for line in lines)

        models = {"sft": folder / "sft/final", "rl": folder / "rl/final"}
        for name in ("no-edit", "ground-truth", *models):
            mine = ("--model", models[name], "--vision", folder / "vision") if name in models else ()
            command(
                "baselines.evaluate",
                *("--editor", "emu3" if mine else name, "--name", name, *mine, "--output-dir", folder / "eval" / name),
                *("--data", AURORA, "--benchmark", "aurora", "--image-area", AREA, "--limit", 6),
            )
            command("baselines.score", "--predictions", folder / "eval" / name, "--judge-url", judge.url)
    finally:
        judge.close()
    scores = sorted(folder.glob("eval/*/scores.parquet"))
    command("baselines.table", "--scores", *scores, "--output-dir", folder, "--reference", "sft")
    command("baselines.report", "--run-dir", folder, "--candidate", "rl", "--reference", "sft")
    rows = {row["model"]: row for row in json.loads((folder / "summary.json").read_text())}
    # Of the six rows that the seed draws three have a target.
    assert {model: (row["n"], row["failed"]) for model, row in rows.items()} == {
        model: (3 if model == "ground-truth" else 6, 0) for model in rows
    }
    assert rows["no-edit"]["mean"] == 0
    assert ANY_IMAGE.model in (folder / "report.html").read_text()


def test_without_a_fitting_judge_nothing_is_made_up(
    checkpoints: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The world's verifier refuses every photograph: training saves and ends, scoring ends at once, and no score, no
    zero among them, is left behind."""
    folder = checkpoints
    judge = Served(VERIFIER, folder / "judge.url")
    try:
        short = ("steps=1", "judge.pauses=1", "judge.pause_seconds=0.1")
        with pytest.raises(UserError, match=r"no score for 6 of 6 rollouts .*no edit of this world.*the run is saved"):
            reinforce(command, folder, judge, "init", monkeypatch, *short)
        assert (folder / "rl/checkpoints/step_000000/manifest.json").exists()
        output = folder / "eval" / "no-edit"
        command(
            "baselines.evaluate",
            *("--editor", "no-edit", "--data", AURORA, "--benchmark", "aurora", "--image-area", AREA, "--limit", 4),
            *("--output-dir", output),
        )
        with pytest.raises(UserError, match=r"the judge refused the first 4 of 4 samples: .*no edit of this world"):
            command("baselines.score", "--predictions", output, "--judge-url", judge.url)
    finally:
        judge.close()
    assert not (output / "scores.parquet").exists()
    with pytest.raises(UserError, match=r"scores\.parquet does not exist"):
        command("baselines.table", "--scores", output / "scores.parquet", "--output-dir", folder)
    assert not (folder / "table.md").exists()
