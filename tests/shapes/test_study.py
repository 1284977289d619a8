"""The study's graph with commands that do nothing but leave scores: what is made, once, in which order, and again."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.results.records import SCORED, VIESCORE, ScoredSample, write_records
from emu3.errors import UserError
from emu3.files import read_json
from shapes import recipe, stages
from shapes.judges import ANY_IMAGE
from shapes.recipe import Preset
from shapes.study import graph
from shapes.study import sitting as study
from shapes.study.cells import BENCHMARKS, HELD_OUT
from shapes.study.graph import Graph, Lengths
from shapes.study.rows import FIVE, ROWS, SIZES, Rl, Sizes, budgets, map_rows
from shapes.write_data import DataSpec

SAMPLES, RESAMPLES = 12, 200
LEVELS = {
    "sft_s": 4.0,
    "sft_s__rl_sc": 6.0,
    "sft_sc": 3.0,
    "sft_sc2stage": 2.0,
    "map_sft_noise0": 7.0,
    "map_sft_noise2": 1.0,
}
"""Mean scores of rows; 5 of the others."""


class World:
    """In place of the commands. ran: what each did, with which row; broken: rows whose training fails."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken: set[str] = set()
        self.ends_at: int | None = None

    def start(self, command: list[Any], log: Path, variables: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        words = [str(word) for word in command]
        log.write_text("a line\n")
        if "shapes.judge_server" in words:
            Path(words[words.index("--port-file") + 1]).write_text("http://127.0.0.1:1/v1\n")
            return subprocess.Popen(["sleep", "600"], start_new_session=True)
        self.ran.append(log.stem)
        if self.ends_at is not None and len(self.ran) > self.ends_at:
            raise KeyboardInterrupt
        if "baselines.score" in words:
            self.score(Path(words[words.index("--predictions") + 1]))
        return subprocess.Popen(["false" if log.stem in self.broken else "true"], start_new_session=True)

    def score(self, folder: Path) -> None:
        name, seed = folder.name.partition("-n")[0], int(folder.parents[1].name[1:])
        on_map = "-n" not in folder.name
        records = []
        for place, benchmark in enumerate(HELD_OUT if on_map else BENCHMARKS):
            draw = np.random.default_rng([seed, place, *name.encode()])
            for number in range(SAMPLES):
                value = LEVELS.get(name, 5.0) + float(draw.normal(0, 0.5))
                sample = f"{benchmark}{'_dev' if seed < 10 and not on_map else ''}_{number}"
                records.append(
                    ScoredSample(sample, "data", "all", "", "", name, "emu3", VIESCORE, SCORED, value, {}, {}, None)
                )
        picked = {"best_of": 5, "picked_by": "shapes-verifier"} if "best5" in name else {}
        settings = {
            "judge": "shapes-verifier",
            "judged_on": "2026-01-01",
            "evaluation": {"seed": seed, "options": picked},
        }
        write_records(folder / "scores.parquet", records, settings)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(stages, "_start", made.start)
    monkeypatch.setattr(stages, "_TICK", 0.001)
    monkeypatch.setattr(study, "lengths", lambda *_: Lengths())
    return made


def sit(
    folder: Path, rows: tuple[str, ...] = (), *, seeds: tuple[int, ...] = (10,), budget: str = "all"
) -> dict[str, Any]:
    return study.run("smoke", folder / "runs", folder / "cells", budget, seeds, rows, SAMPLES, RESAMPLES)


def test_what_rows_share_is_made_once(tmp_path: Path, world: World) -> None:
    """Five rows of a seed train one base and one SFT (S), and start their judge for all."""
    summary = sit(tmp_path, FIVE)
    trained = [name for name in world.ran if "evaluate" not in name and "score" not in name]
    expected = {
        "benchmarks-n12",
        "s10-data",
        "s10-vision",
        "s10-pretrain",
        "s10-sft_s",
        *map("s10-tokenize-{}".format, range(4)),
    }
    expected |= {"s10-sft_s__rl_sc", "s10-sft_sc", "s10-sft_sc2stage"}
    assert len(trained) == len(expected) and set(trained) == expected
    assert [row["row"] for row in summary["rows"]] == list(FIVE)
    assert all(run["status"] == "made" for run in summary["runs"])
    claims = {claim["claim"]: claim["verdict"] for claim in summary["claims"]}
    assert claims["SFT (S+C) is below SFT (S)"] == "holds" and list(claims.values()).count("undecided") == 5


def test_a_later_sitting_makes_only_what_is_missing(tmp_path: Path, world: World) -> None:
    """On another machine, which has the cells and no run folder."""
    sit(tmp_path, ("sft_s",))
    world.ran.clear()
    first = study.run("smoke", tmp_path / "elsewhere", tmp_path / "cells", "all", (10,), ("sft_s",), SAMPLES, RESAMPLES)
    assert world.ran == [] and first["rows"][0]["scores"]["AVG of 6"]["mean"] == pytest.approx(4.0, abs=0.2)
    sit(tmp_path, ("sft_s", "sft_sc2stage"))
    assert world.ran == ["s10-sft_sc2stage", "s10-evaluate-n12-sft_sc2stage", "s10-score-n12-sft_sc2stage"]


def test_interrupted_anywhere_it_comes_to_the_same_page(tmp_path: Path, world: World) -> None:
    """Byte for byte but for times: tables are made of the cells, in an order of their own."""
    rows = ("sft_s", "sft_s__rl_sc", "map_start", "map_rl", "map_sft_noise0", "map_sft_noise2")
    sit(tmp_path / "whole", rows)
    for ends_at in (0, 3, 4, 6, 5, None):
        world.ran.clear()
        world.ends_at = ends_at
        if ends_at is None:
            sit(tmp_path / "cut", rows)
        else:
            with pytest.raises(KeyboardInterrupt):
                sit(tmp_path / "cut", rows)
    pages = [read_json(tmp_path / name / "runs/summary.json") for name in ("whole", "cut")]
    for page in pages:
        for run in page["runs"]:
            run["seconds"] = run["core_seconds"] = 0
    assert json.dumps(pages[0]) == json.dumps(pages[1])
    maps = [(tmp_path / name / "runs/map.png").read_bytes() for name in ("whole", "cut")]
    assert maps[0] == maps[1]


def test_a_failed_run_is_listed_with_its_reason_and_tried_again(tmp_path: Path, world: World) -> None:
    """The others are made; what the failed one leads to is not, and says why."""
    world.broken = {"s10-sft_sc2stage"}
    rows = ("sft_sc2stage__rl_sc", "sft_s")
    summary = sit(tmp_path, rows)
    lost, made = summary["runs"]
    assert (lost["status"], made["status"]) == ("failed", "made")
    assert "stage s10-sft_sc2stage failed with exit code 1; its log is logs/s10-sft_sc2stage.log" in lost["failures"][0]
    assert "failed with exit code 1" in (tmp_path / "runs/study.md").read_text()
    world.broken = set()
    again = sit(tmp_path, rows)["runs"][0]
    assert again["status"] == "made" and again["failures"] == lost["failures"], "what failed stays on the list"


def test_settings_of_another_study_are_refused(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell says by its digest what it was made by: a model of an older recipe in the folder would make that a lie."""
    sit(tmp_path, ("sft_s",))
    names = {file.name for file in (tmp_path / "cells").iterdir()}
    monkeypatch.setattr(study.Graph._start.__globals__["recipe"], "SFT_BATCH", 32)
    with pytest.raises(UserError, match=r"holds s10-\w+ of other settings: choose another --output"):
        sit(tmp_path, ("sft_s",))
    study.run("smoke", tmp_path / "new", tmp_path / "cells", "all", (10,), ("sft_s",), SAMPLES, RESAMPLES)
    assert len({file.name for file in (tmp_path / "cells").iterdir()} - names) == 1


def test_development_seeds_have_samples_of_their_own(tmp_path: Path, world: World) -> None:
    """Settings that were chosen on the reported samples would flatter them."""
    made = Graph(tmp_path, SIZES["smoke"], ROWS, 10)
    reported, chosen = (made.tasks[made.cell("sft_s", seed).tasks[-2]] for seed in (10, 0))
    assert "benchmarks-n10" in reported.needs and "benchmarks-n10-dev" in chosen.needs
    assert "--dev" in made.tasks["benchmarks-n10-dev"].commands[0]
    summary = sit(tmp_path, ("sft_s",), seeds=(0,))
    assert set(summary["rows"][0]["scores"]) == {*BENCHMARKS, "AVG of 6"}


def test_a_budget_without_time_makes_a_page_of_nothing(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.StudyProgress, "has_time_for", lambda self, task: not task.name.endswith("sft_s"))
    summary = sit(tmp_path, ("sft_sc", "sft_s"))
    assert [run["status"] for run in summary["runs"]] == ["made", "not reached"]
    assert "not reached" in (tmp_path / "runs/study.md").read_text()


def test_every_row_can_be_made(tmp_path: Path) -> None:
    """Of the whole table: its chain of tasks ends in scores, each from the start that its name says, by its judge."""
    sizes = SIZES["full"]
    rows = {**ROWS, **map_rows(sizes)}
    graph = Graph(tmp_path, sizes, rows, 200)
    for name, row in rows.items():
        cell = graph.cell(name, 1)
        assert cell.tasks[-1].startswith("s1-score") and len(set(cell.tasks)) == len(cell.tasks)
        done: set[str] = set()
        for task in cell.tasks:
            assert set(graph.tasks[task].needs) <= done
            done.add(task)
        if isinstance(row.how, Rl):
            task = graph.tasks[f"s1-{name}"]
            assert task.server == row.how.judge and f"model={tmp_path}/s1/{row.how.start}/final" in task.commands[0]
    files = {graph.cell(name, 1).file for name in rows}
    assert len(files) == len(rows)
    planned = {name for plan in budgets(sizes).values() for group in plan.groups for name in group}
    assert planned == rows.keys(), "every row stands in a budget"


def test_compute_counts_passes_on_the_whole_way() -> None:
    """RL has eight completions for a prompt, each sampled, scored twice and trained on; its start comes on top."""
    graph = Graph(Path("/x"), SIZES["full"], ROWS, 100)
    lengths = Lengths(prompt=40, completion=36, thinking=160)
    own, whole = graph.passes("sft_s__rl_sc", lengths)
    steps = graph.sizes.steps("rl")
    assert own == steps * 16 * (40 + 8 * 36) * 5
    assert whole == own + graph.passes("sft_s", lengths)[1]
    assert graph.passes("earl", lengths)[0] == 2 * own
    assert graph.passes("sft_s_best5", lengths) == graph.passes("sft_s", lengths)


def test_an_unknown_row_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rows: no row 'sft_x'; there are sft_s, "):
        sit(tmp_path, ("sft_x",))


@pytest.mark.skipif(not os.environ.get("EARL_SLOW"), reason="a dozen real commands, minutes: EARL_SLOW=1")
def test_two_rows_by_the_real_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests leave out: that each command takes its options, and its output is where the next looks."""
    data = DataSpec(simple=40, complex=12, held_out=4, pictures=40)
    tiny = Sizes(Preset(data, tokenizer_steps=20, pretrain_steps=6, sft_steps=6, rl_steps=2, control_steps=6))
    monkeypatch.setitem(SIZES, "smoke", tiny)
    plain = recipe.judge
    monkeypatch.setattr(recipe, "judge", lambda *names, **weak: plain(*names, any_image=[], **weak))
    monkeypatch.setattr(graph, "VERIFIER", ANY_IMAGE)
    summary = sit(tmp_path, ("sft_s__rl_sc_noisy", "sft_s_best5"))
    assert [run["status"] for run in summary["runs"]] == ["made", "made"], summary["runs"]
    scores = {row["row"]: row["scores"]["AVG of 6"] for row in summary["rows"]}
    assert scores["sft_s_best5"]["n"] == 6 * SAMPLES and scores["sft_s__rl_sc_noisy"]["failed"] == 0
    picked = {row["row"]: row["conditions"]["picked_by"] for row in summary["rows"]}
    assert picked == {"sft_s__rl_sc_noisy": "", "sft_s_best5": ANY_IMAGE.model}
    [cell] = (tmp_path / "cells").glob("sft_s__rl_sc_noisy-*")
    assert len(read_json(cell)["reward"]) == 2 and read_json(cell)["core_seconds"] > 1
