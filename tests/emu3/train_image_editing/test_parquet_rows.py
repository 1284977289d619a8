"""Rows come out of row groups and files as they went in, and in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import Columns
from emu3.train_image_editing.row_files import ParquetRows

COLUMNS = Columns(source="image", instruction="text")


def record(index: int) -> dict[str, Any]:
    return {"image": {"bytes": b"%d" % index, "path": None}, "text": f"row {index}", "more": index}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """100 + 0 + 3 rows, in groups of 40, 40, 20 and 3."""
    paths = [tmp_path / f"{name}.parquet" for name in "abc"]
    for path, (start, count) in zip(paths, ((0, 100), (100, 0), (100, 3)), strict=True):
        table = pa.Table.from_pylist([record(index) for index in range(start, start + count)] or [record(0)])
        pq.write_table(table.slice(0, count), path, row_group_size=40)
    return paths


@pytest.mark.parametrize(
    "indices",
    [range(103), [0, 39, 40, 79, 80, 99, 100, 102], [35, 36, 70], [102], [50, 39, 5, 38, 60, 60]],
    ids=["all", "edges", "within a group", "last", "backwards"],
)
def test_rows_are_those_of_their_number(files: list[Path], indices: Any) -> None:
    rows = ParquetRows(files, files[0].parent, COLUMNS)
    assert len(rows) == 103
    for _ in range(2):  # a second worker's part begins where the first one's ended, or before
        expected = [{key: record(index)[key] for key in ("image", "text")} for index in indices]
        assert list(rows.read(np.array(indices))) == expected


def test_a_large_row_group_is_not_read_at_once(tmp_path: Path) -> None:
    """Writers that know nothing of images put a million rows into one group."""
    generator = np.random.default_rng(0)
    cells = [{"image": generator.bytes(5_000), "text": "x"} for _ in range(8192)]
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "large.parquet", compression="none")
    del cells
    rows = ParquetRows([tmp_path / "large.parquet"], tmp_path, COLUMNS)
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    peak = max(pool.bytes_allocated() - before for _ in rows.read(range(8192)))
    assert peak < 15e6, f"{peak / 1e6:.0f} MB of 40 MB are in memory"


def test_other_data_under_the_same_names_is_other_contents(files: list[Path]) -> None:
    """A run that goes on with them would mix two datasets; that they were copied or touched does not matter."""
    root = files[0].parent
    before = ParquetRows(files, root, COLUMNS).contents
    copies = root / "copies"
    copies.mkdir()
    for file in files:
        (copies / file.name).write_bytes(file.read_bytes())
    assert ParquetRows([copies / file.name for file in files], copies, COLUMNS).contents == before
    changed = [record(index) for index in range(100)]
    changed[7]["text"] = "row X"
    pq.write_table(pa.Table.from_pylist(changed), files[0], row_group_size=40)
    assert ParquetRows(files, root, COLUMNS).contents != before
    assert ParquetRows(files[1:], root, COLUMNS).contents != ParquetRows(files[:1], root, COLUMNS).contents


def test_damaged_files_are_named(files: list[Path]) -> None:
    data = files[0].read_bytes()
    damaged = data[:100] + bytes(len(data) // 2 - 100) + data[len(data) // 2 :]
    files[0].write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.parquet is damaged, row group 0"):
        list(ParquetRows(files, files[0].parent, COLUMNS).read(range(103)))
    files[2].write_bytes(files[2].read_bytes()[:-20])
    with pytest.raises(UserError, match=r"c\.parquet is not a Parquet file"):
        ParquetRows(files, files[0].parent, COLUMNS)


def test_a_column_that_one_file_lacks_is_named(files: list[Path]) -> None:
    """Otherwise the last file fails after hours."""
    pq.write_table(pa.table({"image": [b""], "texts": [""]}), files[2])
    with pytest.raises(UserError, match=r"c\.parquet has no column 'text'; it has image, texts"):
        ParquetRows(files, files[0].parent, COLUMNS)
