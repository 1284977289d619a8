"""Agreement of judges on scores whose relation is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from baselines import agreement
from baselines.agreement import RatingColumns
from baselines.results.records import ScoredSample, write_records
from baselines.tables.correlations import correlations
from emu3.errors import UserError

Make = Callable[..., ScoredSample]


@pytest.fixture
def files(make_score: Make, tmp_path: Path) -> Callable[..., Path]:
    """`files(name, values, **fields)` writes the scores of samples 0, 1, 2, ..., by two sources in turn."""

    def make(name: str, values: list[float | None], judge: str = "one", **fields: Any) -> Path:
        rows = [
            make_score(str(place), value, source_set="ag" if place % 2 else "epic", **fields)
            for place, value in enumerate(values)
        ]
        path = tmp_path / f"{name}.parquet"
        write_records(path, rows, {"judge": judge, "judge_seed": 0})
        return path

    return make


def test_known_agreement(files: Callable[..., Path], tmp_path: Path) -> None:
    """Guards sign, direction and pairing: the second judge is one point milder, and failures are on neither side."""
    values = [0.0, 2.0, 4.0, 6.0, 8.0, 9.0, None, 5.0]
    milder = [None if value is None else value + 1 for value in values]
    milder[7] = None
    groups = agreement.run(files("a", values), tmp_path / "out", other=files("b", milder, judge="two"), resamples=50)
    assert [(group.group, group.n) for group in groups] == [("all", 6), ("epic", 3), ("ag", 3)]
    whole = groups[0]
    assert (whole.difference, whole.difference_ci95, whole.equal) == (-1.0, None, 0.0)  # equal values: no interval
    assert [one.value for one in whole.correlations] == pytest.approx([1.0, 1.0, 1.0])
    written = json.loads((tmp_path / "out/agreement.json").read_text())
    assert (written["first"], written["second"]) == ("one, seed 0", "two, seed 0")
    assert "| all | 6 | 1.00 [1.00, 1.00] |" in (tmp_path / "out/agreement.md").read_text()


def test_a_judge_agrees_with_itself(files: Callable[..., Path], tmp_path: Path) -> None:
    path = files("a", [1.0, 5.0, 3.0, 3.4])
    [whole, *_] = agreement.run(path, tmp_path / "out", other=path, resamples=50)
    assert (whole.equal, whole.difference) == (1.0, 0.0)


def test_the_subset_is_fixed_and_the_same_for_all_models(make_score: Make, tmp_path: Path) -> None:
    """Guards comparisons over time: the subset depends on ids alone, not on order, and takes both models' edits."""
    rows = [make_score(str(place), place / 5, model=model) for model in ("m", "n") for place in range(50)]
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    write_records(one, rows, {})
    write_records(other, rows[::-1], {})
    kept = [
        agreement.run(first, tmp_path / first.stem, other=second, subset=20, resamples=5)[0]
        for first, second in ((one, other), (other, one))
    ]
    assert kept[0].n == 20 and kept[0] == kept[1]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_people_are_correlated_not_subtracted(files: Callable[..., Path], tmp_path: Path, suffix: str) -> None:
    """Guards the scale: ratings from 1 to 5 rank like scores from 0 to 10. Two people's ratings are averaged."""
    path = files("a", [0.0, 3.0, 6.0, 9.0])
    rated = [("0", 1.0), ("1", 2.0), ("2", 1.0), ("2", 5.0), ("3", 5.0), ("9", 1.0)]
    rows = [{"sample": id, "model": "m", "mean": rating} for id, rating in rated]
    ratings = tmp_path / f"ratings{suffix}"
    if suffix == ".json":
        ratings.write_text(json.dumps(rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), ratings)
    else:
        ratings.write_text("sample,model,mean\n" + "".join(f"{id},m,{rating}\n" for id, rating in rated))
    columns = RatingColumns(id="sample", rating="mean")
    [whole, *_] = agreement.run(path, tmp_path / "out", ratings=ratings, columns=columns, resamples=50)
    assert whole.n == 4 and whole.difference is None and whole.equal is None
    assert whole.correlations[1].value == pytest.approx(1.0)
    assert whole.correlations[0].value == pytest.approx(np.corrcoef([0, 3, 6, 9], [1, 2, 3, 5])[0, 1])


def test_a_part_of_the_score_is_compared(files: Callable[..., Path], tmp_path: Path) -> None:
    one = files("a", [1.0, 2.0, 3.0])
    other = files("b", [5.0, 5.0, 5.0], parts={"sc": 2.0})
    [whole, *_] = agreement.run(one, tmp_path / "out", other=other, part="sc", resamples=5)
    assert whole.difference == 0.0 and whole.correlations[0].value is None
    with pytest.raises(UserError, match="no part 'colour'; there are sc, pq"):
        agreement.run(one, tmp_path / "out", other=other, part="colour")


def test_bad_input_is_named(files: Callable[..., Path], tmp_path: Path) -> None:
    path = files("a", [1.0, 2.0])
    with pytest.raises(UserError, match="one of --other and --ratings"):
        agreement.run(path, tmp_path / "out")
    with pytest.raises(UserError, match=r"no sample of .* on both sides"):
        agreement.run(path, tmp_path / "out", other=files("b", [1.0, 2.0], benchmark="elsewhere"))
    for text, message in (
        ("id,model\n0,m\n", "has no column 'rating'"),
        ("id,model,rating\n0,m,good\n", "rating 1: 'good' is no number"),
        ("id,model,rating\n0,m,nan\n", "rating 1: 'nan' is no number"),
        ("", "has no ratings"),
    ):
        ratings = tmp_path / "ratings.csv"
        ratings.write_text(text)
        with pytest.raises(UserError, match=message):
            agreement.run(path, tmp_path / "out", ratings=ratings)
    assert not (tmp_path / "out").exists()


def test_ids_of_several_benchmarks_need_the_column(make_score: Make, tmp_path: Path) -> None:
    """Guards against a rating that is given to the row 0 of every benchmark."""
    rows = [make_score("0", 1.0), make_score("0", 2.0, benchmark="other")]
    write_records(tmp_path / "a.parquet", rows, {})
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("id,model,rating\n0,m,3\n")
    with pytest.raises(UserError, match="ids occur in several benchmarks"):
        agreement.run(tmp_path / "a.parquet", tmp_path / "out", ratings=ratings)


def test_intervals_hold_what_they_say() -> None:
    """Guards the resampling of pairs: resampled apart, the two sides would not be correlated at all."""
    random = np.random.default_rng(0)
    one = random.normal(size=150)
    other = one + random.normal(size=150)
    for found in correlations(one, other, resamples=300):
        assert found.value is not None and found.ci95 is not None
        assert found.ci95[0] < found.value < found.ci95[1] and found.ci95[0] > 0.2
    assert [found.value for found in correlations(one, np.ones(150))] == [None] * 3
    assert [found.ci95 for found in correlations(one[:2], other[:2])] == [None] * 3
