"""Tables of several runs, of several edits of one image, and what a table says against its own means."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines import evaluate, paper_tables, score, table
from baselines.benchmarks.spec import GENERIC
from baselines.results.records import ScoredSample, read_records, write_records
from baselines.tables.statistics import mean_interval
from baselines.tables.summary import summarise
from emu3.errors import UserError

Make = Callable[..., ScoredSample]


@pytest.fixture
def write(make_score: Make, tmp_path: Path) -> Callable[..., Path]:
    """`write(model, values, seed=..., weights=...)` writes a scores file as `baselines.score` does."""
    number = count()

    def make(
        model: str, values: Sequence[float | None], seed: int = 0, weights: str = "ab", about: Any = None, **fields: Any
    ) -> Path:
        scores = [
            make_score(str(row), value, model=model, **{name: column[row] for name, column in fields.items()})
            for row, value in enumerate(values)
        ]
        made = {"editor": "emu3", "seed": seed, "options": {"weights": {"model": {"files": weights * 32}}}}
        path = tmp_path / f"{next(number)}/scores.parquet"
        write_records(path, scores, {"judge": "j", "evaluation": made} | (about or {}))
        return path

    return make


def markdown(files: Sequence[Path], out: Path, **options: Any) -> str:
    table.run(files, out, **options)
    return (out / "table.md").read_text()


def test_several_seeds_make_one_row(write: Callable[..., Path], tmp_path: Path) -> None:
    """Guards the refusal of a second seed, and an interval that a further seed of the same samples would narrow."""
    base = np.random.default_rng(0).uniform(3, 7, 120)
    files = [write("sft", list(base + shift), seed=seed) for seed, shift in enumerate((0.0, 0.3, 0.6))]
    files += [write("rl", list(base + shift + 1), seed=seed) for seed, shift in enumerate((0.2, 0.3, 0.1))]
    text = markdown(files, tmp_path / "out", reference="sft")
    sft, rl = json.loads((tmp_path / "out/summary.json").read_text())
    assert (sft["n"], sft["images"], sft["mean"]) == (360, 120, pytest.approx(base.mean() + 0.3))
    assert list(sft["runs"]) == ["seed 0", "seed 1", "seed 2"]
    low, high = sft["ci95"]
    alone_low, alone_high = mean_interval(base) or (0.0, 0.0)
    assert high - low > alone_high - alone_low
    # Run by run: +1.2, +1.0, +0.5, of which the mean is 0.9 and Student's t half 4.3027 * sqrt(0.13 / 3).
    difference = rl["difference"]
    assert (difference["n"], difference["mean"]) == (360, pytest.approx(0.9))
    assert difference["ci95"] == pytest.approx([0.9 - 0.8957, 0.9 + 0.8957], abs=1e-3)
    assert list(difference["runs"].values()) == pytest.approx([1.2, 1.0, 0.5])
    assert "these seeds, these samples" in text and "this checkpoint" not in text
    assert "**Score from 0 to 10, run by run**" in text and "seed 0: +1.20, seed 1: +1.00, seed 2: +0.50 |" in text
    assert "seed 0 | 1 | 2" in text
    with (tmp_path / "out/table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["runs"], line["source_images"]) for line in lines] == [("3", "120")] * 2
    assert "this checkpoint, these samples" in markdown(files[:1], tmp_path / "one")


def test_runs_of_other_weights_are_told_apart(write: Callable[..., Path], tmp_path: Path) -> None:
    """Three trainings that were sampled with one seed are three runs; the same run twice is refused."""
    files = [write("sft", [1.0, 2.0, 4.0], weights=weights) for weights in ("ab", "cd")]
    markdown(files, tmp_path / "out")
    [row] = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(row["runs"]) == ["seed 0, model abababab", "seed 0, model cdcdcdcd"]
    with pytest.raises(UserError, match=r"model 'sft' has two scores for sample '0' of 'data'.*seed, or its weights"):
        table.run([files[0], write("sft", [1.0, 2.0, 4.0])], tmp_path / "twice")


def test_seeds_and_source_images_come_through_all_steps(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards what a table knows of a run that no judge saw: its seed, and which edits are of one image."""
    spec = replace(GENERIC, target="output", source_id="scene").called("mine")
    data = make_data(rows=6, scene=[f"scene {row // 2}" for row in range(6)])
    files = []
    for seed in (0, 1):
        folder = tmp_path / f"{seed}"
        evaluate.run(editor="no-edit", data=data, output_dir=folder, benchmark=spec, seed=seed, image_area=256)
        files.append(score.run(folder, metrics=["l1"]))
    [simple, complex_] = table.run(files, tmp_path / "out")
    assert list(simple.runs) == ["seed 0", "seed 1"] and (simple.n + complex_.n, simple.images) == (12, 3)
    assert {one.benchmark for one in read_records(files[0], ScoredSample)} == {"mine"}


def test_a_reference_of_one_run_and_of_other_seeds(write: Callable[..., Path], tmp_path: Path) -> None:
    """Each run is compared with the one that there is; runs of other seeds belong to none of the reference's."""
    runs = [write("rl", [2.0, 4.0, 6.0 + seed], seed=seed) for seed in (0, 1)]
    markdown([*runs, write("sft", [1.0, 2.0, 3.0], seed=5)], tmp_path / "one", reference="sft")
    rl = json.loads((tmp_path / "one/summary.json").read_text())[0]
    assert rl["difference"]["n"] == 6 and list(rl["difference"]["runs"].values()) == pytest.approx([2.0, 2 + 1 / 3])
    others = [write("sft", [1.0, 2.0, 3.0], seed=seed) for seed in (1, 2)]
    alike = [write("x", [1.0, 2.0, 3.0 + seed], seed=seed) for seed in (1, 2)]
    text = markdown([*runs, *others, *alike], tmp_path / "two", reference="sft")
    assert "No difference of `rl` to `sft`: their runs have not the same seeds" in text
    assert [row["difference"] is None for row in json.loads((tmp_path / "two/summary.json").read_text())] == [
        *(True, True, False)
    ]


def test_edits_of_one_image_are_one_draw(write: Callable[..., Path], make_score: Make, tmp_path: Path) -> None:
    """Guards resampling by row: five edits of each of 30 images say less than 150 images do; where the images are not
    known, the table says so."""
    random = np.random.default_rng(1)
    values = [float(value) for value in np.repeat(random.uniform(0, 10, 30), 5)]
    known = write("m", values, source_id=[f"image {row // 5}" for row in range(150)])
    assert read_records(known, ScoredSample)[7].source_id == "image 1"
    text = markdown([known], tmp_path / "known")
    assert "Source images unknown" not in text and "n below 100 (from 30), counted in source images" in text
    [row] = table.run([known], tmp_path / "known")
    unknown = write("m", values)
    assert "Source images unknown for `m`" in markdown([unknown], tmp_path / "unknown")
    [loose] = table.run([unknown], tmp_path / "unknown")
    assert row.ci95 and loose.ci95 and (row.images, loose.images) == (30, 150)
    ratio = (row.ci95[1] - row.ci95[0]) / (loose.ci95[1] - loose.ci95[0])
    assert ratio == pytest.approx(5**0.5, rel=0.15)  # of equal values five count as one


def test_equal_needs_a_margin(write: Callable[..., Path], tmp_path: Path) -> None:
    """Guards "no difference" from an interval that holds 0."""
    random = np.random.default_rng(2)
    base = random.uniform(0, 10, 200)
    files = [write("a", list(base)), write("b", list(base + random.normal(0, 0.2, 200)))]
    text = markdown(files, tmp_path / "none", reference="a")
    assert "does not show that two models are alike" in text and "(equal)" not in text
    assert "1 intervals is 95% by itself: not adjusted" in text
    assert "| 200 |" in text.split("difference**")[1]
    assert "] (equal) | 200 |" in markdown(files, tmp_path / "wide", reference="a", margin=0.1)
    assert "] (equal)" not in markdown(files, tmp_path / "narrow", reference="a", margin=0.001)
    with pytest.raises(UserError, match="--margin 0: a margin is above 0"):
        table.run(files, tmp_path / "zero", margin=0)


def test_tasks_that_disagree_are_named(write: Callable[..., Path], tmp_path: Path) -> None:
    """Guards an even mean in front of a gain and a loss."""
    random = np.random.default_rng(3)
    tasks = ["counting" if row % 2 else "relation" for row in range(120)]
    base = random.uniform(3, 7, 120)
    gain = np.where(np.arange(120) % 2, 3.0, -1.5) + random.normal(0, 0.1, 120)
    files = [write("sft", list(base), task=tasks), write("rl", list(base + gain), task=tasks)]
    text = markdown(files, tmp_path / "out", reference="sft")
    assert "TASKS DISAGREE about `rl` against `sft`: counting +3." in text and "], relation -1." in text
    files = [files[0], write("rl", list(base + abs(gain)), task=tasks)]
    assert "DISAGREE" not in markdown(files, tmp_path / "alike", reference="sft")


def test_failures_of_one_task_are_named(write: Callable[..., Path], tmp_path: Path) -> None:
    """Guards a mean that leaves out the hard task: its failures are no chance."""
    tasks = ["counting" if row % 4 == 0 else "colour" for row in range(200)]
    values = [None if row % 8 == 0 else 5.0 + row % 3 for row in range(200)]
    text = markdown([write("m", values, task=tasks)], tmp_path / "out")
    assert "FAILURES GO WITH THE TASK: `m`: counting 25 of 50, others 0 of 150;" in text
    scattered = [None if row % 9 == 0 else 5.0 + row % 3 for row in range(200)]
    assert "GO WITH" not in markdown([write("m", scattered, task=tasks)], tmp_path / "scattered")


@pytest.mark.parametrize(("judge", "marked"), [("qwen", True), ("gpt", False)])
def test_best_of_n_by_the_judge_itself_is_marked(
    write: Callable[..., Path], tmp_path: Path, judge: str, marked: bool
) -> None:
    """Guards a row that was chosen for the score that it is shown with."""
    evaluation = {"editor": "emu3", "seed": 0, "options": {"best_of": 5, "picked_by": "qwen"}}
    file = write("best", [4.0, 5.0], about={"judge": judge, "evaluation": evaluation})
    text = markdown([file], tmp_path / "out")
    assert ("| `best` † |" in text) == ("† best of n by the judge that scores it" in text) == marked


def test_the_development_part_is_no_result(write: Callable[..., Path], tmp_path: Path) -> None:
    about = {"evaluation": {"editor": "emu3", "seed": 0, "limit": "50 by seed 42", "part": "dev"}}
    text = markdown([write("m", [4.0, 5.0], about=about)], tmp_path / "out")
    assert "DEVELOPMENT PART: `m`" in text and "limit 50 by seed 42, part dev." in text


def test_the_mark_leaves_room_for_the_published_noise(write: Callable[..., Path], tmp_path: Path) -> None:
    """Guards 17 false marks of 100: a published score just outside our interval may be as far off as ours."""
    judged = {"judge": "gpt-4o-mini-2024-07-18", "protocol": "published"}
    random = np.random.default_rng(4)
    marks = []
    for _ in range(120):
        values = 5 + random.normal(0, 1.0, 60)
        published = 5 + random.normal(0, 1.0, 60).mean()
        file = write("earl", list(values - published + 6.39), about=judged, benchmark=["omniedit"] * 60)
        grid = paper_tables.compare(
            next(one for one in paper_tables.tables() if one.number == 2),
            *paper_tables.read_scores([file]),
            resamples=300,
        )
        marks.append(any("*" in text for row in grid.rows for text in row))
    # 5% of 120 are 6; three standard errors are 7. Without the room 17%, 20, were marked.
    assert sum(marks) <= 13


def test_the_interval_of_a_row_does_not_depend_on_its_runs_order(write: Callable[..., Path], tmp_path: Path) -> None:
    files = [write("m", [1.0, 5.0, 3.0 + seed], seed=seed) for seed in (0, 1, 2)]
    rows = [table.run(order, tmp_path / "out")[0] for order in (files, files[::-1])]
    assert rows[0].ci95 == pytest.approx(rows[1].ci95) and rows[0].mean == rows[1].mean


def test_a_run_without_a_score_leaves_the_mean_unknown(make_score: Make) -> None:
    """Guards a mean over the seeds that happened to be judged."""
    scores = [make_score("a", 1.0, run="seed 0"), make_score("a", None, run="seed 1")]
    [row] = summarise(scores)
    assert (row.mean, row.n, row.failed, row.runs) == (None, 1, 1, {})
