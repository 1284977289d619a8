"""Tables from scores whose answers are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from baselines import table
from baselines.results.records import ScoredSample, write_records
from baselines.tables.paper import benchmarks
from baselines.tables.summary import average_rows, by_task, main_rows, summarise
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


def test_many_failures_and_few_samples_are_said_beside_the_mean(make_score: Make, tmp_path: Path) -> None:
    """Failing 60% of a model's zeros lifted its mean by 1.2 points, without a word; and an interval over 50 scores that
    are nearly alike covers the truth 39 times of 100."""
    scores = [make_score(str(row), 4.0 + row % 2) for row in range(48)]
    write_records(tmp_path / "few.parquet", [*scores, make_score("48", None)], {})
    table.run([tmp_path / "few.parquet"], tmp_path / "silent")
    assert "MANY FAILED: `m`, simple: 2% have" in (tmp_path / "silent/table.md").read_text()
    write_records(tmp_path / "many.parquet", [*scores, *(make_score(f"x{row}", None) for row in range(12))], {})
    table.run([tmp_path / "many.parquet"], tmp_path / "loud")
    text = (tmp_path / "loud/table.md").read_text()
    assert (
        "MANY FAILED: `m`, simple: 20% have no score; counted as 0 they make its mean 3.60, counted as 10 5.60." in text
    )
    assert "n below 100 (from 48)" in text
    scores = [make_score(str(row), 4.0 + row % 2) for row in range(100)]
    write_records(tmp_path / "fine.parquet", [*scores, make_score("100", None)], {})
    table.run([tmp_path / "fine.parquet"], tmp_path / "fine")
    text = (tmp_path / "fine/table.md").read_text()
    assert "FAILED" not in text and "n below" not in text


def test_paired_difference_uses_the_samples_of_both(make_score: Make) -> None:
    """Guards pairing by id: order differs, each model fails on a sample that the other has."""
    scores = [make_score("a", 1.0), make_score("b", 9.0), make_score("c", 5.0), make_score("d", None)]
    scores += [make_score(id, value, model="rl") for id, value in (("d", 0.0), ("c", None), ("b", 10.0), ("a", 2.0))]
    rows = {row.model: row for row in summarise(scores, reference="m")}
    assert rows["m"].difference is None
    difference = rows["rl"].difference
    assert difference is not None
    # Both differences are 1, though the two means, 5 and 4, differ the other way; equal values have no interval.
    assert (difference.to, difference.n, difference.mean, difference.ci95) == ("m", 2, 1.0, None)


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


def test_files_hold_the_same_numbers(make_score: Make, tmp_path: Path) -> None:
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
    assert summary[1]["difference"] == {"to": "sft", "n": 5, "mean": 1.0, "ci95": None, "nested": None, "runs": {}}

    with (tmp_path / "out" / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["mean"] for line in lines] == ["2.0", "3.0", "3.0", "3.0"]
    assert (lines[2]["ci95_low"], lines[0]["difference"], lines[1]["difference"]) == ("", "", "1.0")

    text = (tmp_path / "out" / "table.md").read_text()
    low, high = rows[0].ci95 or (0.0, 0.0)
    assert f"| `sft` | 2.00 [{low:.2f}, {high:.2f}] | 5 | 1 | 3.00 | 1 | 0 |" in text
    assert "| `rl` | +1.00 | 5 | +0.00 | 1 |" in text
    assert "**Score from 0 to 10, by task**" in text


def test_unknown_is_a_dash(make_score: Make, tmp_path: Path) -> None:
    """Guards against a model without a judged sample that looks like one that scored zero."""
    write_records(tmp_path / "scores.parquet", [make_score("a", None)], {})
    table.run([tmp_path / "scores.parquet"], tmp_path / "out")
    assert "| `m` | – | 0 | 1 |" in (tmp_path / "out" / "table.md").read_text()


def test_the_same_scores_give_the_same_files(make_score: Make, tmp_path: Path) -> None:
    write_records(tmp_path / "scores.parquet", [make_score(str(place), place * 1.0) for place in range(8)], {})
    for out in ("one", "two"):
        table.run([tmp_path / "scores.parquet"], tmp_path / out)
    names = ["summary.json", "table.csv", "table.md", "table.png", "table.tex", "tasks.csv"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_file_of_something_else_is_refused(tmp_path: Path, make_data: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no file of ScoredSample rows: it lacks benchmark, model"):
        table.run([make_data()], tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        table.run([tmp_path / "nothing.parquet"], tmp_path / "out")


def over_benchmarks(make_score: Make, model: str, values: dict[str, list[float | None]]) -> list[ScoredSample]:
    return [
        make_score(str(place), value, model=model, benchmark=benchmark)
        for benchmark, numbers in values.items()
        for place, value in enumerate(numbers)
    ]


def test_the_average_is_the_plain_mean_of_the_six(make_score: Make) -> None:
    """Guards the paper's AVG: a large benchmark weighs no more than a small one, a seventh not at all."""
    six: dict[str, list[float | None]] = {name: [float(place)] * 2 for place, name in enumerate(benchmarks())}
    scores = over_benchmarks(make_score, "m", six | {"omniedit": [6.0] * 50, "gedit": [10.0] * 2})
    rows = {row.split: row for row in main_rows(scores)}
    assert list(rows) == ["OmniEdit", "EmuEdit", "AURORA", "MagicBrush", "VisMin", "I2EBench", "gedit", "AVG"]
    average = rows["AVG"]
    assert average.mean == pytest.approx((6 + 1 + 2 + 3 + 4 + 5) / 6)
    assert average.ci95 is None and average.n == 60


def test_an_average_with_a_hole_is_unknown(make_score: Make) -> None:
    """Guards against a mean of five that stands beside means of six."""
    scores = over_benchmarks(make_score, "whole", {name: [2.0, 4.0] for name in benchmarks()})
    scores += over_benchmarks(make_score, "part", {name: [9.0, 9.0] for name in list(benchmarks())[:5]})
    scores += over_benchmarks(make_score, "failed", {name: [None, 9.0] for name in list(benchmarks())[:5]})
    scores += over_benchmarks(make_score, "failed", {list(benchmarks())[5]: [None]})
    rows = {row.model: row for row in average_rows(scores, reference="whole")}
    assert rows["whole"].mean == 3.0 and rows["whole"].parts == {"sc": 3.0, "pq": 3.0}
    assert (rows["part"].mean, rows["part"].ci95, rows["part"].difference) == (None, None, None)
    assert (rows["failed"].mean, rows["failed"].n, rows["failed"].failed) == (None, 5, 6)


def test_an_average_of_other_benchmarks_says_of_how_many(make_score: Make) -> None:
    scores = over_benchmarks(make_score, "m", {"aurora": [1.0, 3.0], "mine": [5.0, 5.0]})
    scores += over_benchmarks(make_score, "n", {"aurora": [2.0, 4.0], "mine": [8.0, 8.0]})
    rows = [row for row in main_rows(scores, reference="m") if row.split == "AVG of 2"]
    assert [row.mean for row in rows] == [3.5, 5.5]
    difference = rows[1].difference
    assert difference is not None and (difference.mean, difference.n, difference.ci95) == (2.0, 4, None)


def test_tasks_of_two_benchmarks_are_told_apart(make_score: Make, tmp_path: Path) -> None:
    """Guards against one line for the "removal" of two benchmarks."""
    scores = over_benchmarks(make_score, "m", {"omniedit": [1.0], "emuedit": [3.0]})
    write_records(tmp_path / "scores.parquet", scores, {})
    table.run([tmp_path / "scores.parquet"], tmp_path / "out")
    with (tmp_path / "out" / "tasks.csv").open() as file:
        found = {line["split"]: line["mean"] for line in csv.DictReader(file)}
    assert found == {"OmniEdit: colour": "1.0", "EmuEdit: colour": "3.0"}


def test_sources_have_a_file_of_their_own(make_score: Make, tmp_path: Path) -> None:
    scores = [make_score("a", 1.0, source_set="ag"), make_score("b", 3.0, source_set="kubric")]
    write_records(tmp_path / "scores.parquet", scores, {})
    table.run([tmp_path / "scores.parquet"], tmp_path / "out")
    assert "| ag | 1.00 |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "sources.csv").read_text().count("\n") == 3


def test_each_metric_has_its_own_table(make_score: Make, tmp_path: Path) -> None:
    """Guards against a mean over values of two metrics, and against a figure over a set that counts as one sample."""
    scores = [make_score("a", 8.0), make_score("a", 0.0123456, metric="l1"), make_score("b", None, metric="l1")]
    scores.append(make_score("*", 40.59, metric="fid", parts={"n": 700.0}))
    write_records(tmp_path / "scores.parquet", scores, {})
    rows = table.run([tmp_path / "scores.parquet"], tmp_path / "out")
    assert [(row.mean, row.n) for row in rows] == [(8.0, 1)]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| `m` | 8.00 | 1 | 0 |" in text
    assert "**l1**" in text and "| `m` | 0.01235 | 1 | 1 |" in text
    assert "**fid**" in text and "| `m` | 40.59 | 700 | 0 |" in text
    assert "fid, by task" not in text


def test_a_metric_without_a_figure_says_why(make_score: Make, tmp_path: Path) -> None:
    """Guards a column that was skipped, as for weights that are not there: a reason, no number, no empty tables."""
    scores = [make_score("a", 8.0), make_score("a", None, metric="lpips", status="missing", detail="no weights")]
    write_records(tmp_path / "scores.parquet", scores, {})
    table.run([tmp_path / "scores.parquet"], tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text()
    assert "Nothing was scored: no weights." in text and "lpips, by task" not in text


def test_nothing_is_said_about_differences_that_are_not_there(make_score: Make, tmp_path: Path) -> None:
    """Guards against an empty section: nothing was scored twice, so there is nothing to compare."""
    scores = [make_score("a", 1.0), make_score("b", None, model="rl")]
    write_records(tmp_path / "scores.parquet", scores, {})
    table.run([tmp_path / "scores.parquet"], tmp_path / "out", reference="m")
    assert "difference" not in (tmp_path / "out" / "table.md").read_text()


PUBLISHED = {
    "judge": "gpt-4o-mini-2024-07-18",
    "protocol": "published",
    "prompts": "ab" * 32,
    "judge_temperature": None,
}


def test_the_published_score_stands_beside_ours(make_score: Make, tmp_path: Path) -> None:
    """Guards the comparison: same model, same benchmark, and a mark if our interval leaves the score out."""
    values: dict[str, list[float | None]] = {"omniedit": [6.0, 7.0], "emuedit": [0.5, 1.5, None]}
    write_records(tmp_path / "scores.parquet", over_benchmarks(make_score, "EARL", values), PUBLISHED)
    table.run([tmp_path / "scores.parquet"], tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| `EARL` | ours | 6.50 [6.00, 7.00] | 1.00 [0.50, 1.50] | – |" in text
    assert "|  | published | 6.39 | 4.47 | 4.27 |" in text
    assert "|  | difference | +0.11 | -3.47* | – |" in text
    assert "|  | n (failed) | 2 (0) | 2 (1) | 0 (0) |" in text
    with (tmp_path / "out" / "table.csv").open() as file:
        first = next(csv.DictReader(file))
    assert (first["published"], round(float(first["difference_to_published"]), 9)) == ("6.39", 0.11)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "unknown judge"),
        (PUBLISHED | {"judge": "shapes-verifier"}, "other judge"),
        (PUBLISHED | {"judge": "gpt-4o-mini"}, "other judge"),
        (PUBLISHED | {"protocol": "ours"}, "other protocol"),
        ({key: value for key, value in PUBLISHED.items() if key != "protocol"}, "other protocol"),
    ],
)
def test_a_difference_says_why_it_is_not_there(
    make_score: Make, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    """Guards a smoke run by pixel statistics that was printed as "ours 0.00, published 3.58, difference -3.58*"."""
    values: dict[str, list[float | None]] = {name: [0.0, 0.0] for name in benchmarks()}
    write_records(tmp_path / "scores.parquet", over_benchmarks(make_score, "sft_s", values), settings)
    table.run([tmp_path / "scores.parquet"], tmp_path / "out")
    for name in ("table.md", "table.tex"):
        text = (tmp_path / "out" / name).read_text()
        assert text.count(f"none: {reason}") == 7 and "-3.58" not in text
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["difference_to_published"], row["not_compared"]) for row in rows} == {("", reason)}


def test_every_table_carries_its_conditions(make_score: Make, tmp_path: Path) -> None:
    """Guards numbers that are taken for another judge's, another wording's or another checkpoint's."""
    weights = {"model": {"files": "cd" * 32, "hub": "org/name@main", "commit": "ef" * 20}}
    options = {"weights": weights, "best_of": 5, "picked_by": "qwen", "think": True}
    evaluation = {"editor": "emu3", "seed": 3, "limit": 50, "options": options}
    asked = {"judge_seed": 7, "judge_image_format": "jpeg", "judged_on": "2026-11-30", "judge_served": ["served-name"]}
    scores = [make_score(str(row), row * 1.0, model="earl", source_set="ag") for row in range(4)]
    scores.append(make_score("0", 0.5, model="earl", metric="l1"))
    write_records(tmp_path / "one/scores.parquet", scores, PUBLISHED | asked | {"evaluation": evaluation})
    write_records(tmp_path / "two/scores.parquet", [make_score("0", 1.0, model="other")], {})
    out = tmp_path / "out"
    table.run([tmp_path / "one/scores.parquet", tmp_path / "two/scores.parquet"], out)
    text = (out / "table.md").read_text()
    judged = (
        "- `earl`: judge `gpt-4o-mini-2024-07-18` (served as `served-name`), protocol published, wording abababab, "
        "temperature left to the server, images JPEG, seed 7, asked on 2026-11-30."
    )
    made = (
        "- `earl`: editor emu3, weights model cdcdcdcd (org/name@efefefef), seed 3, "
        "think, best_of 5, picked_by qwen, limit 50."
    )
    sections = text.split("\n**")
    assert len(sections) == 5
    assert all(made in section for section in sections)
    assert [judged in section for section in sections] == ["l1" not in section[:5] for section in sections]
    assert "- `other`: judge unknown." in sections[0] and "- `other`: editor unknown." in sections[0]
    latex = (out / "table.tex").read_text()
    assert latex.count("wording abababab") == 3 and latex.count(r"\footnotesize") >= 10
    for name in ("table.csv", "tasks.csv", "sources.csv"):
        with (out / name).open() as file:
            row = next(row for row in csv.DictReader(file) if row["model"] == "earl")
        assert (row["judge"], row["wording"], row["protocol"]) == ("gpt-4o-mini-2024-07-18", "ab" * 32, "published")
        assert (row["editor"], row["seed"], row["date"]) == ("emu3", "3", "2026-11-30")
    with Image.open(out / "table.png") as drawn:
        height = drawn.height
    write_records(tmp_path / "one/scores.parquet", scores, {})
    table.run([tmp_path / "one/scores.parquet"], tmp_path / "bare")
    with Image.open(tmp_path / "bare/table.png") as drawn:
        assert drawn.height < height


def test_failures_as_zero_stand_beside_and_nowhere_else(make_score: Make, tmp_path: Path) -> None:
    """Guards the published column: there where the published protocol is, in no interval and in no difference."""
    scores = [make_score("a", 8.0), make_score("b", 6.0), make_score("c", None), make_score("d", None)]
    for protocol, expected in (
        ("published", "| model | simple | n | failed | failures as 0 |"),
        ("ours", "| failed |\n"),
    ):
        write_records(tmp_path / "scores.parquet", scores, PUBLISHED | {"protocol": protocol})
        [row] = table.run([tmp_path / "scores.parquet"], tmp_path / protocol)
        assert (row.mean, row.ci95, row.mean_with_zeros) == (7.0, (6.0, 8.0), 3.5)
        text = (tmp_path / protocol / "table.md").read_text()
        assert expected in text
        with (tmp_path / protocol / "table.csv").open() as file:
            zeros = next(csv.DictReader(file))["mean_failures_as_0"]
        assert zeros == ("3.5" if protocol == "published" else "")
    assert "| `m` | 7.00 [6.00, 8.00] | 2 | 2 | 3.50 |" in (tmp_path / "published/table.md").read_text()
