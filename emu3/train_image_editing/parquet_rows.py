"""Rows of Parquet files, streamed: a picture data set is larger than memory and ought not to be copied either.

Rows are asked for in ascending order, so each row group is read once, in small batches, and no second copy in
another format is made on the disk. A jump within a group costs reading what lies between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import BadRow, Columns

_BATCH_ROWS = 32
_STREAMED = {"buffer_size": 2**20, "pre_buffer": False}  # else a row group is read at once, however large


class ParquetRows:
    """The rows of `files` behind each other; only the named columns are read. For one reader at a time.

    contents: SHA-256 of names, sizes and footers, which hold the layout, sizes and statistics of every column: cheap,
    and different for files written from other data, except for pictures of the same compressed sizes.
    root: the folder that names are relative to. Raises UserError if a file is no Parquet file or lacks a column.
    """

    def __init__(self, files: Sequence[Path], root: Path, columns: Columns) -> None:
        self._names = list(dict.fromkeys(columns.names()))
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        digest = hashlib.sha256()
        for file in files:
            metadata, present = _footer(file)
            if missing := [name for name in self._names if name not in present]:
                raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(present)}")
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group))
                sizes.append(metadata.row_group(group).num_rows)
            digest.update(repr((file.relative_to(root).as_posix(), file.stat().st_size)).encode())
            digest.update(_footer_bytes(file))
        self.contents = digest.hexdigest()
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._open_group: int | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch = pa.record_batch({})
        self._start = 0  # number of the batch's first row

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | BadRow]:
        """The rows of these numbers. Raises UserError for a damaged file."""
        for index in indices:
            yield self._row(int(index))

    def _row(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        file, number = self._groups[group]
        try:
            if group != self._open_group or index < self._start:
                self._open(group)
            while index >= self._start + self._batch.num_rows:
                self._start += self._batch.num_rows
                self._batch = next(self._batches)
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise UserError(f"{file} is damaged, row group {number}: {error}") from error
        values: dict[str, Any] = self._batch.slice(index - self._start, 1).to_pylist()[0]
        return values

    def _open(self, group: int) -> None:
        file, number = self._groups[group]
        self._batches = pq.ParquetFile(file, **_STREAMED).iter_batches(
            _BATCH_ROWS, row_groups=[number], columns=self._names
        )
        self._open_group = group
        self._start = int(self._ends[group - 1]) if group else 0
        self._batch = next(self._batches)


def _footer(file: Path) -> tuple[pq.FileMetaData, list[str]]:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.metadata, parquet.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a Parquet file: {error}") from None


def _footer_bytes(file: Path) -> bytes:
    """The metadata at the end of a Parquet file, its length and the magic bytes."""
    with file.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return stream.read()
