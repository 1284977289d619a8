"""The stages that are killed: the commands that a user types, on a tiny world of random weights and small scenes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rl.check_node.judge import some_score
from rl.check_node.runs import AREA, make_world, write_config
from shapes.stages import Command, module
from shapes.write_data import DataSpec, write

CHAIN = "1. A thing.\n2. The thing.\n3. It is at [0, 0, 28, 28].\n4. It changes.\n5. Another thing."
QUICKSTART = """
from shapes import quickstart, recipe
from shapes.write_data import DataSpec
data = DataSpec(simple=40, complex=12, held_out=4, pictures=40)
recipe.PRESETS["smoke"] = recipe.Preset(data, 20, 6, 6, 2, 6)
plain = recipe.judge
recipe.judge = lambda folder: plain(folder, any_image=[])  # also reads images of a tokenizer that has learned nothing
quickstart.run_main(quickstart.main)
"""


@dataclass(frozen=True)
class Stage:
    """A command that is killed. command: from the folder that it writes. given: a folder that is there before its first
    start, or None. long: it is also sent each signal once."""

    name: str
    command: Callable[[Path], Command]
    given: Path | None = None
    long: bool = False


def make_stages(world: Path, judge: str) -> dict[str, Stage]:
    """The stages by name. world: an empty or earlier folder, which gets models and images. judge: its address."""
    if not (world / "ready").exists():
        shutil.rmtree(world, ignore_errors=True)
        make_world(world)
        write(DataSpec(simple=12, complex=4, held_out=4, pictures=2), world / "images", workers=1)
        (world / "ready").touch()
    write_config(world, judge, "local", 2)
    stages = [
        Stage("tokenize", lambda out: _tokenize(world, out), long=True),
        Stage("sft", lambda out: _sft(world, out), long=True),
        Stage("sft-zero", lambda out: _sft(world, out, zero=True), long=True),
        Stage("rl", lambda out: _rl(world, out), long=True),
        Stage("rl-zero", lambda out: _rl(world, out, zero=True), long=True),
        Stage("annotate", lambda out: _annotate(world, out, judge), long=True),
        Stage("evaluate", lambda out: _evaluate(world, out), long=True),
        Stage("score", lambda out: _score(out, judge), world / "predictions", long=True),
        Stage("table", lambda out: module("baselines.table", scores=world / "scores/scores.parquet", output=out)),
        Stage("report", lambda out: module("baselines.report", run_dir=out), world / "run"),
        Stage("export", lambda out: _export(world, out)),
        Stage("quickstart", lambda out: ["-c", QUICKSTART, "--preset", "smoke", "--output", out], long=True),
    ]
    return {stage.name: stage for stage in stages}


def make_results(world: Path, judge: str) -> None:
    """Predictions, scores and a table, which the evaluation's later stages read; made once."""
    if (world / "run").exists():
        return
    for name in ("predictions", "scores", "unfinished"):
        shutil.rmtree(world / name, ignore_errors=True)
    _call(_evaluate(world, world / "predictions"))
    shutil.copytree(world / "predictions", world / "scores")
    _call(_score(world / "scores", judge))
    shutil.copytree(world / "scores", world / "unfinished/eval/emu3")
    _call(module("baselines.table", scores=world / "scores/scores.parquet", output=world / "unfinished"))
    (world / "unfinished").rename(world / "run")


def _call(command: Command) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)


def _tokenize(world: Path, out: Path) -> Command:
    return module(
        "emu3.train_image_editing.prepare_data",
        source="local",
        data=world / "images/simple.parquet",
        output=out,
        vision=world / "vision",
        original_image_key="input",
        edit_instruction_key="instruction",
        edited_image_key="output",
        image_area=AREA,
        shard_rows=1,
    )


def _sft(world: Path, out: Path, zero: bool = False) -> Command:
    return module(
        "emu3.train_image_editing.sft",
        ranks=2 if zero else 1,
        model=world / "model",
        data=world / "data",
        output=out,
        per_device_train_batch_size=2,
        max_steps=6,
        save_steps=1,
        save_total_limit=2,
        logging_steps=1,
        attn_implementation="sdpa",
        use_cpu=True,
        **({"deepspeed": Path("scripts/zero3.json").absolute(), "bf16": True} if zero else {}),
    )


def _rl(world: Path, out: Path, zero: bool = False) -> Command:
    keys = [f"output_dir={out.parent}", f"run_name={out.name}", "steps=4", "save_every=1"]
    keys += ["compute.zero=2"] if zero else ["compute.zero=0", "compute.precision=fp32"]
    return module("rl.train", world / "run.jsonnet", *keys, ranks=2 if zero else 1)


def _annotate(world: Path, out: Path, judge: str) -> Command:
    return module(
        "rl.annotate",
        data=world / "images/simple.parquet",
        source="local",
        output=out,
        judge_url=judge,
        original_image_key="input",
        edited_image_key="output",
        edit_instruction_key="instruction",
        part_rows=1,
    )


def _evaluate(world: Path, out: Path) -> Command:
    return module(
        "baselines.evaluate",
        editor="emu3",
        name="emu3",
        model=world / "model",
        vision=world / "vision",
        data=world / "images/held_out.parquet",
        original_image_key="input",
        edit_instruction_key="instruction",
        edited_image_key="output",
        task_key="task",
        id_key="id",
        output=out,
        image_area=AREA,
        batch_size=1,
    )


def _score(out: Path, judge: str) -> Command:
    return module("baselines.score", predictions=out, judge_url=judge, metrics=["viescore", "l1"], judge_concurrency=1)


def _export(world: Path, out: Path) -> Command:
    return module("emu3.export", model=world / "model", vision=world / "vision", name="org/name", output=out / "export")


def steady_reply(question: bytes) -> str:
    """Scores, or a chain of thought where that is what is asked for; equal questions get equal replies."""
    return CHAIN if b"five numbered steps" in question else some_score(question)
