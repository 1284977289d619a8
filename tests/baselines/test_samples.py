"""Reading a benchmark: columns, splits, and rows that must not pass silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from baselines.benchmarks.samples import Samples
from baselines.benchmarks.spec import AURORA, GENERIC, Benchmark
from emu3.errors import UserError

FULL = Benchmark("data", source="input", instruction="instruction", target="output", task="task", id="id")
AURORA_FILE = Path(__file__).parents[2] / "../shared/data/aurora-bench-dev.parquet"


def test_takes_the_columns_that_it_is_told(make_data: Callable[..., Path]) -> None:
    samples = Samples(FULL, make_data(rows=3))
    assert [(sample.id, sample.task, sample.split) for sample in samples] == [
        ("sample-0", "counting", "complex"),
        ("sample-1", "colour", "simple"),
        ("sample-2", "counting", "complex"),
    ]
    assert samples[1].instruction == "change number 1"
    assert samples[1].target is not None and samples[1].target.tobytes() != samples[1].source.tobytes()


def test_split_without_a_column_is_that_of_the_task_then_of_the_benchmark(make_data: Callable[..., Path]) -> None:
    spec = Benchmark("b", "input", "instruction", task="task", split="complex", splits={"colour": "simple"})
    assert [sample.split for sample in Samples(spec, make_data(rows=2, split=None))] == ["complex", "simple"]


def test_without_columns_a_row_has_its_number_and_the_benchmark(make_data: Callable[..., Path]) -> None:
    sample = Samples(GENERIC, make_data())[1]
    assert (sample.id, sample.task, sample.target) == ("1", "data", None)


def test_limit_keeps_the_first_rows(make_data: Callable[..., Path]) -> None:
    assert [sample.id for sample in Samples(FULL, make_data(), limit=2)] == ["sample-0", "sample-1"]


def test_reads_a_folder_of_files_in_order(make_data: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (1, 0):
        make_data(rows=2, id=[f"{place}-a", f"{place}-b"]).rename(folder / f"{place}.parquet")
    assert [sample.id for sample in Samples(FULL, folder)] == ["0-a", "0-b", "1-a", "1-b"]


def test_a_split_takes_the_files_that_are_named_for_it(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards an evaluation on rows that were trained on, which lie in the same folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        make_data(rows=1, id=[split]).rename(folder / f"{split}-00000-of-00001.parquet")
    assert [sample.id for sample in Samples(FULL, folder, split="test")] == ["test"]
    with pytest.raises(UserError, match=r"validation-\*\.parquet"):
        Samples(FULL, folder, split="validation")


def test_missing_column_is_named_with_those_that_exist(make_data: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"no column 'task'; it has id, input, output, instruction, split"):
        Samples(FULL, make_data(task=None))


def test_an_id_that_occurs_twice_is_refused(make_data: Callable[..., Path]) -> None:
    """Guards the pairing of models by id."""
    with pytest.raises(UserError, match="'x' in column 'id' occurs more than once"):
        Samples(FULL, make_data(rows=3, id=["x", "y", "x"]))


def test_a_broken_picture_names_its_row(make_data: Callable[..., Path]) -> None:
    broken = pa.array([b"no picture"] * 2)
    with pytest.raises(UserError, match="row sample-0: input cannot be read as an image"):
        Samples(FULL, make_data(rows=2, input=broken))[0]


@pytest.mark.parametrize("name", ["nothing.parquet", "."])
def test_no_data_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="neither a Parquet file nor a folder"):
        Samples(FULL, tmp_path / name)


def test_no_rows_is_an_error(make_data: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no rows"):
        Samples(GENERIC, make_data(rows=0))


@pytest.mark.skipif(not AURORA_FILE.is_file(), reason="no AURORA-Bench at hand")
def test_aurora_bench_as_published() -> None:
    samples = Samples(AURORA, AURORA_FILE)
    assert len(samples) == 200 and len(samples.rows_with_target()) == 124
    assert len({sample.task for sample in samples}) == 8
    first_without = next(row for row in range(200) if row not in samples.rows_with_target())
    assert samples[first_without].target is None and samples[first_without].split == "complex"
