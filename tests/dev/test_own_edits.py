"""docs/own-edits.md: its blocks, run on a tiny world in this process (`.ci/release guide` runs them as they stand)."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_vision import save_tiny_vision

from baselines.results.records import ScoredSample, read_records
from dev.run_page import blocks_of
from emu3.checkpoint_facts import read_facts, write_facts
from shapes.new_model import build
from shapes.write_data import DataSpec, write

PAGE = Path(__file__).parents[2] / "docs" / "own-edits.md"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the guide takes of a quickstart's folder, in the present folder."""
    run = tmp_path / "runs" / "quickstart"
    write(DataSpec(simple=310, complex=1, held_out=1, pictures=1), run / "data")
    save_tiny_vision(run / "vision")
    final = run / "sft_s" / "final"
    build([run / "data" / "simple.parquet"], run / "vision", final, ranks=270, layers=1, width=32, seed=0)
    monkeypatch.chdir(tmp_path)
    facts = read_facts(final)
    assert facts is not None
    write_facts(final, replace(facts, image_area=48 * 32))
    return tmp_path


def commands(script: str, folder: Path) -> list[list[str]]:
    """The arguments of every `python` that a block calls; none is run."""
    shim = folder / "shim"
    shim.mkdir(exist_ok=True)
    (shim / "python").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "" >> "{folder / "calls"}"\n')
    (shim / "python").chmod(0o755)
    (folder / "calls").write_text("")
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], check=True, env={"PATH": f"{shim}:/usr/bin:/bin"}, cwd=folder
    )
    return [call.split("\n") for call in (folder / "calls").read_text().strip().split("\n\n")]


def test_the_guide_runs(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that was renamed, a step whose output the next one does not find. Two steps of training
    and a few images are enough."""
    ran = []
    for language, text in blocks_of(PAGE):
        if language == "python":
            fewer = text.replace("range(300)", "range(20)").replace("range(300, 350)", "range(300, 304)")
            exec(compile(fewer, str(PAGE), "exec"), {})
            continue
        for dash_m, module, *arguments in commands(text, world):
            assert dash_m == "-m"
            if "--max_steps" in arguments:
                arguments[arguments.index("--max_steps") + 1] = "2"
            arguments = [
                each for word in arguments for each in (sorted(map(str, world.glob(word))) if "*" in word else [word])
            ]
            monkeypatch.setattr(sys, "argv", [module, *arguments])
            importlib.import_module(module).main()
            ran.append(module.rpartition(".")[2])
    assert ran == ["prepare_data", "sft", "edit", "evaluate", "score", "evaluate", "score", "table"]
    facts = read_facts(world / "my-run" / "final")
    assert facts is not None and facts.steps == 2 and facts.image_area == 1536
    for name in ("sft_s", "my-run"):
        rows = read_records(world / "my-eval" / name / "scores.parquet", ScoredSample)
        assert len(rows) == 8 and all(row.value is not None for row in rows)
    assert "| `my-run` |" in (world / "my-eval" / "table.md").read_text()
