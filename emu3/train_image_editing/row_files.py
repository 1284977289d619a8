"""Rows from files, a few at a time: of Parquet files, and of what `datasets` saved.

Parquet is read here and not by `datasets`, which would first write a second copy of it to the disk: an image dataset
is larger than memory and ought not to be copied either. Rows are asked for in ascending order, so each row group is
read once, in small batches. A jump within a group costs reading what lies between.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError, one_line
from emu3.files import reading_parquet, sha256_of
from emu3.train_image_editing.image_rows import LFS_POINTER, BadRow, Columns

_BATCH_ROWS = 32
_UNREADABLE = (ValueError, OverflowError)  # of a cell, as Python: no UTF-8, a day after the year 9999
_STREAMED = {"buffer_size": 2**20, "pre_buffer": False}  # else a row group is read at once, however large


class RowSource(Protocol):
    """Rows with undecoded images. contents: a digest that changes when the data does. files: where the rows are.

    origin: `org/name@commit` of the Hub, or "local".
    """

    contents: str
    files: list[Path]
    origin: str

    def __len__(self) -> int: ...

    def read(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | BadRow]:
        """Cells by column for each of the ascending row numbers; a row that cannot be read comes as a BadRow."""
        ...

    def column(self, name: str) -> list[Any]:
        """The cells of one column of all rows, None in rows that cannot be read."""
        ...

    def file(self, index: int) -> Path:
        """The file that holds the row."""
        ...


class ParquetRows:
    """The rows of `files` behind each other; only the named columns are read. For one reader at a time.

    contents: SHA-256 of names, sizes and footers, which hold the layout, sizes and statistics of every column: cheap,
    and different for files written from other data, except for images of the same compressed sizes.
    root: the folder that names are relative to. A file that is the same as another is said on standard error. Raises
    UserError if one is no Parquet file, lacks a column or has it twice.
    """

    def __init__(self, files: Sequence[Path], root: Path, columns: Columns, origin: str = "local") -> None:
        self.files, self.origin = list(files), origin
        self._names = columns.names()
        self._extra = [name for name in columns.extra if name not in self._names]
        self._present: dict[Path, list[str]] = {}
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        digest = hashlib.sha256()
        footers: dict[tuple[int, bytes], Path] = {}
        for file in files:
            metadata, present = _footer(file)
            if twice := [name for name in self._names if present.count(name) > 1]:
                raise UserError(f"{file} has two columns {twice[0]!r}: rename one")
            if missing := [name for name in self._names if name not in present]:
                raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(present)}")
            self._present[file] = present
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group))
                sizes.append(metadata.row_group(group).num_rows)
            size, footer = file.stat().st_size, _footer_bytes(file)
            twin = footers.setdefault((size, footer), file)
            if twin is not file and sha256_of(twin) == sha256_of(file):
                print(f"note: {file} is {twin} once more, byte for byte: all of its rows count twice", file=sys.stderr)
            digest.update(repr((file.relative_to(root).as_posix(), size)).encode())
            digest.update(footer)
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

    def column(self, name: str) -> list[Any]:
        """The cells of one column of all rows. Raises UserError for a damaged file, or one that lacks the column."""
        cells: list[Any] = []
        for file in self.files:
            if name not in self._present[file]:
                raise UserError(f"{file} has no column {name!r}; it has {', '.join(self._present[file])}")
            try:
                for batch in pq.ParquetFile(file, **_STREAMED).iter_batches(columns=[name]):
                    cells += (_cell(batch.column(0), row) for row in range(len(batch)))
            except (pa.ArrowException, OSError, *_UNREADABLE) as error:
                raise UserError(f"{file} is damaged: {one_line(error)}") from error
        return cells

    def file(self, index: int) -> Path:
        return self._groups[int(np.searchsorted(self._ends, index, side="right"))][0]

    def _row(self, index: int) -> dict[str, Any] | BadRow:
        group = int(np.searchsorted(self._ends, index, side="right"))
        file, number = self._groups[group]
        try:
            if group != self._open_group or index < self._start:
                self._open(group)
            while index >= self._start + self._batch.num_rows:
                self._start += self._batch.num_rows
                self._batch = next(self._batches)
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise UserError(f"{file} is damaged, row group {number}: {one_line(error)}") from error
        return _cells(self._batch, index - self._start)

    def _open(self, group: int) -> None:
        file, number = self._groups[group]
        names = [*self._names, *(name for name in self._extra if name in self._present[file])]
        self._batches = pq.ParquetFile(file, **_STREAMED).iter_batches(_BATCH_ROWS, row_groups=[number], columns=names)
        self._open_group = group
        self._start = int(self._ends[group - 1]) if group else 0
        self._batch = next(self._batches)


def _cells(batch: pa.RecordBatch | pa.Table, row: int) -> dict[str, Any] | BadRow:
    """A row's cells by column; bytes where it should be a text and is not UTF-8."""
    try:
        values: dict[str, Any] = batch.slice(row, 1).to_pylist()[0]
    except _UNREADABLE:
        values = {}
        for name in batch.schema.names:
            try:
                values[name] = _cell(batch.column(name), row)
            except _UNREADABLE as error:
                return BadRow(f"{name} cannot be read: {one_line(error)}")
    return values


def _cell(column: pa.Array, row: int) -> Any:
    try:
        return column[row].as_py()
    except UnicodeDecodeError:
        if not hasattr(column[row], "as_buffer"):
            raise
        return column[row].as_buffer().to_pybytes()


def _footer(file: Path) -> tuple[pq.FileMetaData, list[str]]:
    with reading_parquet(file):
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{file} is not a Parquet file: it is a git-lfs pointer: fetch it with `git lfs pull`")
        with pq.ParquetFile(file) as parquet:
            return parquet.metadata, parquet.schema_arrow.names


def _footer_bytes(file: Path) -> bytes:
    """The metadata at the end of a Parquet file, its length and the magic bytes."""
    with file.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return stream.read()


class SavedRows:
    """The rows of `dataset`, which `datasets` has mapped into memory from `folder`, as `save_to_disk` wrote it.

    contents: SHA-256 of the names and sizes of its files and of its state, which holds the library's own fingerprint.
    Raises UserError if a column is missing.
    """

    origin = "local"

    def __init__(self, dataset: Any, folder: Path, columns: Columns) -> None:
        present = dataset.column_names
        if missing := [name for name in columns.names() if name not in present]:
            raise UserError(f"{folder} has no column {missing[0]!r}; it has {', '.join(present)}")
        names = [*columns.names(), *(name for name in columns.extra if name in present)]
        self.files = [Path(file["filename"]) for file in dataset.cache_files]
        self._folder = folder
        self._tables = dataset.select_columns(list(dict.fromkeys(names))).with_format("arrow")
        sizes = [(file.name, file.stat().st_size) for file in self.files]
        state = (folder / "state.json").read_bytes()
        self.contents = hashlib.sha256(repr(sizes).encode() + state).hexdigest()

    def __len__(self) -> int:
        return len(self._tables)

    def read(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | BadRow]:
        """The rows of these numbers."""
        for index in indices:
            yield _cells(self._tables[int(index)], 0)

    def column(self, name: str) -> list[Any]:
        """The cells of one column of all rows. Raises UserError if there is no such column."""
        if name not in self._tables.column_names:
            raise UserError(f"{self._folder} has no column {name!r}; it has {', '.join(self._tables.column_names)}")
        cells = self._tables.data.column(name)
        return [_cell(cells, row) for row in range(len(cells))]

    def file(self, index: int) -> Path:
        return self._folder
