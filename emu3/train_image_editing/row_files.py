"""Rows from files, a few at a time: those of Parquet files, and those of an image folder.

Parquet: an image dataset is larger than memory and ought not to be copied either. Rows are asked for in ascending
order, so each row group is read once, in small batches, and no second copy in another format is made on the disk, as
`datasets` would make one. A jump within a group costs reading what lies between.

An image folder is a JSONL file with one edit per line whose images are files, named relative to its folder:

    {"input": "images/1-before.png", "output": "images/1-after.png", "instruction": "make the sky purple"}

Only the places of the lines are held (8 bytes each); a line is read when its turn comes, and its images later still,
where they are decoded.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageFile

_BATCH_ROWS = 32
_STREAMED = {"buffer_size": 2**20, "pre_buffer": False}  # else a row group is read at once, however large


class ParquetRows:
    """The rows of `files` behind each other; only the named columns are read. For one reader at a time.

    contents: SHA-256 of names, sizes and footers, which hold the layout, sizes and statistics of every column: cheap,
    and different for files written from other data, except for images of the same compressed sizes.
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


_LINES_FOR_COLUMNS = 100
_LINES_FOR_CONTENTS = 1000


class ImageFolder:
    """The rows of `table`, a JSONL file, in its order; blank lines are none.

    contents: SHA-256 of the file and of the sizes of the images of up to 1,000 rows, spread evenly. Looking at all
    of them would cost minutes on a network disk, so a few images replaced under their old names go unnoticed.
    Raises UserError if there is no such file, it has no lines, or none of the first 100 lines has one of the columns.
    """

    def __init__(self, table: Path, columns: Columns) -> None:
        self._folder = table.parent.resolve()
        self._columns = columns
        self._images = {columns.source, columns.edited}
        digest = hashlib.sha256()
        self._starts = array("q")
        try:
            self._file = table.open("rb")
        except OSError as error:
            raise UserError(f"{table} cannot be opened: {error.strerror}") from None
        position = 0
        for line in self._file:
            digest.update(line)
            if line.strip():
                self._starts.append(position)
            position += len(line)
        self._starts.append(position)
        self._check_columns(table)
        for row in self.read(range(0, len(self), -(-len(self) // _LINES_FOR_CONTENTS))):
            digest.update(repr(_image_sizes(row)).encode())
        self.contents = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | BadRow]:
        """The rows of these numbers, images as `ImageFile`; one whose line is no JSON object comes as a BadRow."""
        for index in indices:
            try:
                values = self._line(int(index))
            except BadRow as error:
                yield error
            else:
                yield {name: self._cell(name, values.get(name)) for name in self._columns.names()}

    def _line(self, index: int) -> dict[str, Any]:
        start, end = self._starts[index], self._starts[index + 1]
        try:
            values = json.loads(os.pread(self._file.fileno(), end - start, start))
        except (ValueError, RecursionError) as error:
            raise BadRow(f"its line is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise BadRow("its line is not a JSON object")
        return values

    def _cell(self, name: str, value: Any) -> Any:
        return ImageFile(self._folder, value) if name in self._images and isinstance(value, str) else value

    def _check_columns(self, table: Path) -> None:
        if not len(self):
            raise UserError(f"{table} is empty")
        found: set[str] = set()
        for index in islice(range(len(self)), _LINES_FOR_COLUMNS):
            try:
                found |= set(self._line(index))
            except BadRow:
                continue
        for column in self._columns.names():
            if column not in found:
                raise UserError(f"{table} has no column {column!r}; it has {', '.join(sorted(found)) or 'none'}")


def _image_sizes(row: Mapping[str, Any] | BadRow) -> list[int]:
    """Bytes of each image of a row, -1 for one that cannot be read."""
    if isinstance(row, BadRow):
        return []
    return [cell.size() for cell in row.values() if isinstance(cell, ImageFile)]
