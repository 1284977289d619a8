"""Tables from scores whose answers are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from baselines import table
from baselines.records import ScoredSample, write_records
from baselines.summary import by_task, summarise
from emu3.errors import UserError

Make = Callable[..., ScoredSample]


def test_means_counts_and_parts(make_score: Make) -> None:
    scores = [make_score("a", 2.0), make_score("b", 6.0), make_score("c", 5.0, split="complex")]
    simple, complex_ = summarise(scores)
    assert (simple.split, simple.n, simple.mean, simple.failed) == ("simple", 2, 4.0, 0)
    assert simple.ci95 == (2.0, 6.0) and simple.parts == {"sc": 4.0, "pq": 4.0}
    assert (complex_.split, complex_.n, complex_.mean, complex_.ci95) == ("complex", 1, 5.0, None)


def test_failures_are_counted_and_never_averaged(make_score: Make) -> None:
    """Guards the published mistake: a failed call entered the mean as zero."""
    [row] = summarise([make_score("a", 8.0), make_score("b", None), make_score("c", None, status="unavailable")])
    assert (row.n, row.mean, row.failed) == (1, 8.0, 2)
    [row] = summarise([make_score("a", None)])
    assert (row.n, row.mean, row.ci95, row.failed) == (0, None, None, 1)


def test_paired_difference_uses_the_samples_of_both(make_score: Make) -> None:
    """Guards pairing by id: order differs, each model fails on a sample that the other has."""
    scores = [make_score("a", 1.0), make_score("b", 9.0), make_score("c", 5.0), make_score("d", None)]
    scores += [make_score(id, value, model="rl") for id, value in (("d", 0.0), ("c", None), ("b", 10.0), ("a", 2.0))]
    rows = {row.model: row for row in summarise(scores, reference="m")}
    assert rows["m"].difference is None
    difference = rows["rl"].difference
    assert difference is not None
    # Both differences are 1, though the two means, 5 and 4, differ the other way.
    assert (difference.to, difference.n, difference.mean, difference.ci95) == ("m", 2, 1.0, (1.0, 1.0))


def test_samples_of_two_benchmarks_are_not_confused(make_score: Make) -> None:
    """Guards the key: ids such as row numbers occur in every benchmark."""
    scores = [make_score("0", 1.0), make_score("0", 3.0, benchmark="other")]
    assert summarise(scores)[0].mean == 2.0


def test_two_runs_with_one_name_are_refused(make_score: Make) -> None:
    with pytest.raises(UserError, match="model 'm' has two scores for sample 'a' of 'data'"):
        summarise([make_score("a", 1.0), make_score("a", 2.0)])


def test_unknown_reference_names_the_models(make_score: Make) -> None:
    with pytest.raises(UserError, match="no model 'sft' to compare with; there are m"):
        summarise([make_score("a", 1.0)], reference="sft")


def test_order_is_floor_models_ceiling_and_simple_before_complex(make_score: Make) -> None:
    scores = [
        make_score("a", 1.0, split=split, model=model, editor=editor)
        for split in ("complex", "simple")
        for model, editor in (("gt", "ground-truth"), ("z", "emu3"), ("same", "no-edit"), ("b", "emu3"))
    ]
    assert [(row.split, row.model) for row in summarise(scores)] == [
        (split, model) for split in ("simple", "complex") for model in ("same", "z", "b", "gt")
    ]


def test_an_interval_does_not_depend_on_the_other_rows(make_score: Make) -> None:
    """Guards reproduction: a row that is added changes no other row."""
    one = [make_score(str(place), float(place)) for place in range(9)]
    more = [make_score(str(place), 5.0, model="a") for place in range(9)]
    assert summarise(one)[0] in summarise(more + one)


def test_groups_by_task(make_score: Make) -> None:
    rows = summarise([make_score("a", 1.0, task="x"), make_score("b", 2.0, task="y")], by_task)
    assert [(row.split, row.mean) for row in rows] == [("x", 1.0), ("y", 2.0)]


def test_files_hold_the_same_figures(make_score: Make, tmp_path: Path) -> None:
    files = []
    for model, shift in (("sft", 0.0), ("rl", 1.0)):
        scores = [make_score(str(place), place + shift, model=model) for place in range(5)]
        scores += [make_score("f", None, model=model), make_score("c", 3.0, model=model, split="complex")]
        files.append(tmp_path / model / "scores.parquet")
        write_records(files[-1], scores, {})
    rows = table.run(files, tmp_path / "out", reference="sft")

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(row["model"], row["split"], row["n"], row["mean"], row["failed"]) for row in summary] == [
        ("sft", "simple", 5, 2.0, 1),
        ("rl", "simple", 5, 3.0, 1),
        ("sft", "complex", 1, 3.0, 0),
        ("rl", "complex", 1, 3.0, 0),
    ]
    assert summary[0]["ci95"] == list(rows[0].ci95 or ()) and summary[2]["ci95"] is None
    assert summary[1]["difference"] == {"to": "sft", "n": 5, "mean": 1.0, "ci95": [1.0, 1.0]}

    with (tmp_path / "out" / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["mean"] for line in lines] == ["2.0", "3.0", "3.0", "3.0"]
    assert (lines[2]["ci95_low"], lines[0]["difference"], lines[1]["difference"]) == ("", "", "1.0")

    text = (tmp_path / "out" / "table.md").read_text()
    low, high = rows[0].ci95 or (0.0, 0.0)
    assert f"| `sft` | 2.00 [{low:.2f}, {high:.2f}] | 5 | 1 | 3.00 | 1 | 0 |" in text
    assert "| `rl` | +1.00 [+1.00, +1.00] | +0.00 |" in text
    assert "By task." in text


def test_unknown_is_a_dash(make_score: Make, tmp_path: Path) -> None:
    """Guards against a model without a judged sample that looks like one that scored zero."""
    write_records(tmp_path / "scores.parquet", [make_score("a", None)], {})
    table.run([tmp_path / "scores.parquet"], tmp_path / "out")
    assert "| `m` | – | 0 | 1 |" in (tmp_path / "out" / "table.md").read_text()


def test_the_same_scores_give_the_same_files(make_score: Make, tmp_path: Path) -> None:
    write_records(tmp_path / "scores.parquet", [make_score(str(place), place * 1.0) for place in range(8)], {})
    for out in ("one", "two"):
        table.run([tmp_path / "scores.parquet"], tmp_path / out)
    names = ["summary.json", "table.csv", "table.md", "tasks.csv"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_file_of_something_else_is_refused(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no file of ScoredSample rows: it lacks benchmark, model"):
        table.run([make_data()], tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        table.run([tmp_path / "nothing.parquet"], tmp_path / "out")
