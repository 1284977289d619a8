"""Rows from files, a few at a time: of Parquet files, of a table with image files beside it, of saved `datasets`.

Parquet is read here and not by `datasets`, which would first write a second copy of it to the disk: an image dataset
is larger than memory and ought not to be copied either. Rows are asked for in ascending order, so each row group is
read once, in small batches. A jump within a group costs reading what lies between.

A table is a JSONL or CSV file with one edit per line whose images are files, named relative to its folder:

    {"input": "images/1-before.png", "output": "images/1-after.png", "instruction": "make the sky purple"}

In `metadata.jsonl` and `metadata.csv` a column `input_file_name` is called `input`, and `file_name` `image`, as in
`datasets`' imagefolder. That library's own reader is not used: one bad line would end it, here it is a bad row.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError, one_line
from emu3.train_image_editing.image_rows import LFS_POINTER, BadRow, Columns, ImageFile

_BATCH_ROWS = 32
_STREAMED = {"buffer_size": 2**20, "pre_buffer": False}  # else a row group is read at once, however large
_LINES_FOR_COLUMNS = 100
_ROWS_FOR_CONTENTS = 1000


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
    root: the folder that names are relative to. Raises UserError if a file is no Parquet file or lacks a column.
    """

    def __init__(self, files: Sequence[Path], root: Path, columns: Columns, origin: str = "local") -> None:
        self.files, self.origin = list(files), origin
        self._names = columns.names()
        self._extra = [name for name in columns.extra if name not in self._names]
        self._present: dict[Path, list[str]] = {}
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        digest = hashlib.sha256()
        for file in files:
            metadata, present = _footer(file)
            if missing := [name for name in self._names if name not in present]:
                raise UserError(f"{file} has no column {missing[0]!r}; it has {', '.join(present)}")
            self._present[file] = present
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

    def column(self, name: str) -> list[Any]:
        """The cells of one column of all rows. Raises UserError for a damaged file, or one that lacks the column."""
        cells: list[Any] = []
        for file in self.files:
            if name not in self._present[file]:
                raise UserError(f"{file} has no column {name!r}; it has {', '.join(self._present[file])}")
            try:
                for batch in pq.ParquetFile(file, **_STREAMED).iter_batches(columns=[name]):
                    cells += (_cell(batch.column(0), row) for row in range(len(batch)))
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{file} is damaged: {one_line(error)}") from error
        return cells

    def file(self, index: int) -> Path:
        return self._groups[int(np.searchsorted(self._ends, index, side="right"))][0]

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
            raise UserError(f"{file} is damaged, row group {number}: {one_line(error)}") from error
        return _cells(self._batch, index - self._start)

    def _open(self, group: int) -> None:
        file, number = self._groups[group]
        names = [*self._names, *(name for name in self._extra if name in self._present[file])]
        self._batches = pq.ParquetFile(file, **_STREAMED).iter_batches(_BATCH_ROWS, row_groups=[number], columns=names)
        self._open_group = group
        self._start = int(self._ends[group - 1]) if group else 0
        self._batch = next(self._batches)


def _cells(batch: pa.RecordBatch | pa.Table, row: int) -> dict[str, Any]:
    try:
        values: dict[str, Any] = batch.slice(row, 1).to_pylist()[0]
    except UnicodeDecodeError:
        values = {name: _cell(batch.column(name), row) for name in batch.schema.names}
    return values


def _cell(column: pa.Array, row: int) -> Any:
    """A cell; bytes where it should be a text and is not UTF-8."""
    try:
        return column[row].as_py()
    except UnicodeDecodeError:
        return column[row].as_buffer().to_pybytes() if hasattr(column[row], "as_buffer") else b"\xff"


def _footer(file: Path) -> tuple[pq.FileMetaData, list[str]]:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.metadata, parquet.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        with file.open("rb") as stream:
            pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        why = "it is a git-lfs pointer: fetch it with `git lfs pull`" if pointer else one_line(error)
        raise UserError(f"{file} is not a Parquet file: {why}") from None


def _footer_bytes(file: Path) -> bytes:
    """The metadata at the end of a Parquet file, its length and the magic bytes."""
    with file.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return stream.read()


class ImageFolder:
    """The rows of `tables`, JSONL or CSV files below `root`, behind each other; blank lines are none.

    Of a JSONL file only the places of the lines are held (8 bytes each), of a CSV file the cells. contents: SHA-256 of
    the files and of the sizes of the images of up to 1,000 rows, spread evenly. Looking at all of them would cost
    minutes on a network disk, so a few images replaced under their old names go unnoticed.
    Raises UserError if a file cannot be read, there are no rows, or none of the first 100 has one of the columns.
    """

    origin = "local"

    def __init__(self, tables: Sequence[Path], columns: Columns) -> None:
        self.files = list(tables)
        self._columns = columns
        digest = hashlib.sha256()
        self._tables = [(_CsvTable if table.suffix == ".csv" else _JsonLines)(table, digest) for table in tables]
        self._ends = np.cumsum([len(table) for table in self._tables])
        self._check_columns(tables)
        for row in self.read(range(0, len(self), -(-len(self) // _ROWS_FOR_CONTENTS))):
            digest.update(repr(_image_sizes(row)).encode())
        self.contents = digest.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | BadRow]:
        """The rows of these numbers, images as `ImageFile`; one whose line cannot be read comes as a BadRow."""
        for index in indices:
            table, values = self._row(int(index))
            if isinstance(values, BadRow):
                yield values
                continue
            names = [*self._columns.names(), *(name for name in self._columns.extra if name in values)]
            images = self._columns.images()
            yield {name: _file_or_cell(table, values.get(name), name in images) for name in names}

    def column(self, name: str) -> list[Any]:
        """The cells of one column of all rows, None where there is none."""
        rows = (self._row(index)[1] for index in range(len(self)))
        return [None if isinstance(row, BadRow) else row.get(name) for row in rows]

    def file(self, index: int) -> Path:
        return self.files[int(np.searchsorted(self._ends, index, side="right"))]

    def _row(self, index: int) -> tuple[_Table, dict[str, Any] | BadRow]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        table = self._tables[number]
        try:
            values = table.row(index - (int(self._ends[number - 1]) if number else 0))
        except BadRow as error:
            return table, error
        return table, _by_imagefolder_rules(values) if table.path.stem == "metadata" else values

    def _check_columns(self, tables: Sequence[Path]) -> None:
        if not len(self):
            raise UserError(f"{tables[0]} is empty")
        first = (self._row(index)[1] for index in islice(range(len(self)), _LINES_FOR_COLUMNS))
        found = {name for row in first if not isinstance(row, BadRow) for name in row}
        for column in self._columns.names():
            if column not in found:
                raise UserError(f"{tables[0]} has no column {column!r}; it has {', '.join(sorted(found)) or 'none'}")


class _Table(Protocol):
    path: Path
    folder: Path

    def __init__(self, path: Path, digest: Any) -> None: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]: ...


class _JsonLines:
    def __init__(self, path: Path, digest: Any) -> None:
        self.path, self.folder = path, path.parent.resolve()
        self._starts = array("q")
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}") from None
        position = 0
        for line in self._file:
            digest.update(line)
            if line.strip():
                self._starts.append(position)
            position += len(line)
        self._starts.append(position)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def row(self, index: int) -> dict[str, Any]:
        start, end = self._starts[index], self._starts[index + 1]
        try:
            values = json.loads(os.pread(self._file.fileno(), end - start, start))
        except (ValueError, RecursionError) as error:
            raise BadRow(f"its line is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise BadRow("its line is not a JSON object")
        return values


class _CsvTable:
    """Cells are text as it stands, none where there is nothing; the library's reader would take NA for no text."""

    def __init__(self, path: Path, digest: Any) -> None:
        self.path, self.folder = path, path.parent.resolve()
        csv.field_size_limit(2**24)
        try:
            # Bytes that are not UTF-8 are kept, so that their row alone is bad.
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                self._header, *self._rows = (row for row in csv.reader(file) if row)
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as CSV: {one_line(error)}") from None
        digest.update(path.read_bytes())

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        cells = self._rows[index]
        if len(cells) > len(self._header):
            raise BadRow(f"its line has {len(cells)} cells, the header {len(self._header)}")
        return {name: cell or None for name, cell in zip(self._header, cells, strict=False)}


def _file_or_cell(table: _Table, value: Any, image: bool) -> Any:
    if not isinstance(value, str):
        return value
    if image:
        return ImageFile(table.folder, value)
    return value if value.isascii() or not _escaped(value) else value.encode(errors="surrogateescape")


def _escaped(text: str) -> bool:
    """Whether all that UTF-8 cannot hold in a text are bytes of a CSV file."""
    try:
        text.encode(errors="surrogateescape")
        text.encode()
    except UnicodeEncodeError as error:
        return "\udc80" <= text[error.start] <= "\udcff"
    return False


def _by_imagefolder_rules(values: Mapping[str, Any]) -> dict[str, Any]:
    """With names of columns as `datasets` gives them: `a` for `a_file_name`, `image` for `file_name`."""
    renamed = {
        name.removesuffix("file_name").removesuffix("_") or "image": cell
        for name, cell in values.items()
        if name == "file_name" or name.endswith("_file_name")
    }
    return {**renamed, **values}


def _image_sizes(row: Mapping[str, Any] | BadRow) -> list[int]:
    """Bytes of each image of a row, -1 for one that cannot be read."""
    if isinstance(row, BadRow):
        return []
    return [cell.size() for cell in row.values() if isinstance(cell, ImageFile)]


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
