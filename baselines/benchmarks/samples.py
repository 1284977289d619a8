"""The rows of a benchmark, from local Parquet; pictures are decoded when a row is taken, not before.

Cells are read as training data are (`emu3.train_image_editing.image_rows`), with one difference: a row that cannot
be read ends the run, since a benchmark with holes is another benchmark. Left out: data sets on the hub and the subset
rules of single benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from baselines.benchmarks.spec import SPLIT_COLUMN, Benchmark
from emu3.errors import UserError
from emu3.train_image_editing.image_rows import BadRow, Columns, read_row, row_id


@dataclass(frozen=True)
class Sample:
    """One row; pictures are RGB. `target` is the picture that the data set calls right, or None."""

    id: str
    task: str
    split: str
    instruction: str
    source: Image.Image
    target: Image.Image | None


def parquet_files(data: Path, split: str | None = None) -> list[Path]:
    """The Parquet files under a folder in the order of their paths, or the one file. Raises `UserError` if none.

    split: takes the files of a folder that are named for it, as on the Hub: `test-00000-of-00001.parquet`.
    """
    pattern = "*.parquet" if split is None else f"{split}-*.parquet"
    files = sorted(data.rglob(pattern)) if data.is_dir() else [data]
    if not files or not files[0].is_file():
        raise UserError(f"{data} is neither a Parquet file nor a folder with Parquet files ({pattern})")
    return files


class Samples(Sequence[Sample]):
    """`Samples(benchmark, data)[i]` is the i-th row; slices give lists.

    `limit` keeps the first rows, `split` is that of `parquet_files`. Raises `UserError` for a column that is not there
    (naming those that are), for an id that occurs twice, for an empty set, and, on access, for a row without
    instruction or readable source.
    """

    def __init__(self, benchmark: Benchmark, data: Path, limit: int | None = None, split: str | None = None) -> None:
        self.benchmark = benchmark
        self.data = data
        self._columns = Columns(
            source=benchmark.source,
            instruction=benchmark.instruction,
            edited=benchmark.target,
            id=benchmark.id,
            task=benchmark.task,
        )
        tables = [_read_table(file, self._columns.names()) for file in parquet_files(data, split)]
        self._table = pa.concat_tables(tables, promote_options="permissive").slice(0, limit)
        if not len(self._table):
            raise UserError(f"{data} holds no rows")
        if benchmark.id is not None:
            counts = pc.value_counts(self._table[benchmark.id]).to_pylist()
            if twice := [str(count["values"]) for count in counts if count["counts"] > 1]:
                raise UserError(f"{data}: the id {twice[0]!r} in column {benchmark.id!r} occurs more than once")

    def rows_with_target(self) -> list[int]:
        """The numbers of the rows that have a target picture."""
        if self.benchmark.target is None:
            return []
        return np.flatnonzero(self._table[self.benchmark.target].is_valid().to_numpy()).tolist()

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        values = self._table.slice(index, 1).to_pylist()[0]
        try:
            row = read_row(values, self._columns, index)
        except BadRow as error:
            raise UserError(f"{self.data}: row {row_id(values, self._columns, index)}: {error}") from None
        task = row.task or self.benchmark.name
        return Sample(
            id=row.id,
            task=task,
            split=values.get(SPLIT_COLUMN) or self.benchmark.splits.get(task, self.benchmark.split),
            instruction=row.instruction,
            source=row.source.convert("RGB"),
            target=row.edited.convert("RGB") if row.edited is not None else None,
        )


def _read_table(file: Path, columns: list[str]) -> pa.Table:
    try:
        present = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a Parquet file: {error}") from None
    if missing := [name for name in columns if name not in present]:
        raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(present)}")
    optional = [SPLIT_COLUMN] if SPLIT_COLUMN in present else []
    return pq.read_table(file, columns=list(dict.fromkeys([*columns, *optional])))
