"""Rows of a table with image files beside it: JSONL or CSV, an edit per line.

The images are named relative to the table's folder:

    {"input": "images/1-before.png", "output": "images/1-after.png", "instruction": "make the sky purple"}

In `metadata.jsonl` and `metadata.csv` a column `input_file_name` is called `input`, and `file_name` `image`, as in
`datasets`' imagefolder. That library's own reader is not used: one bad line would end it, here it is a bad row.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emu3.errors import UserError, one_line
from emu3.train_image_editing.image_rows import LFS_POINTER, BadRow, Columns, ImageFile

_LINES_FOR_COLUMNS = 100
_ROWS_FOR_CONTENTS = 1000
_HEAD = 256
_PACKED = (b"\x1f\x8b", b"PK\3\4", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")


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
        first = [self._row(index)[1] for index in islice(range(len(self)), _LINES_FOR_COLUMNS)]
        found = {name for row in first if not isinstance(row, BadRow) for name in row}
        for column in self._columns.names():
            if column not in found:
                names = ", ".join(sorted(found)) or f"none: {first[0]}"
                raise UserError(f"{tables[0]} has no column {column!r}; it has {names}")


class _Table(Protocol):
    path: Path
    folder: Path

    def __init__(self, path: Path, digest: Any) -> None: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]: ...


def _check_head(path: Path, head: bytes) -> None:
    """Raise UserError where a table's first bytes say that it is something else."""
    if head.startswith(LFS_POINTER):
        raise UserError(f"{path} is a git-lfs pointer: fetch it with `git lfs pull`")
    if head.startswith(_PACKED):
        raise UserError(f"{path} is packed: unpack it")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or head[:2].count(0) == 1:
        raise UserError(f"{path} is UTF-16, not UTF-8: convert it, for example with iconv")
    if path.suffix == ".jsonl" and re.match(rb"\s*(\[|\{\s*\n)", head):
        raise UserError(f"{path} is one JSON value over several lines; expected one object in each line")


class _JsonLines:
    def __init__(self, path: Path, digest: Any) -> None:
        self.path, self.folder = path, path.parent.resolve()
        self._starts = array("q")
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}") from None
        _check_head(path, self._file.read(_HEAD))
        self._file.seek(0)
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
            line = os.pread(self._file.fileno(), end - start, start).decode("utf-8-sig")
            values = json.loads(line, object_pairs_hook=_unique_keys)
        except UnicodeDecodeError as error:
            raise BadRow(f"its line is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None
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
            with path.open("rb") as bytes_file:
                _check_head(path, bytes_file.read(_HEAD))
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                self._header, *self._rows = (row for row in csv.reader(file) if row)
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as CSV: {one_line(error)}") from None
        if twice := sorted({name for name in self._header if name and self._header.count(name) > 1}):
            raise UserError(f"{path} has two columns {twice[0]!r}: rename one")
        data = path.read_bytes()
        if data.count(b'"') % 2 and self._rows and any("\n" in cell for cell in self._rows[-1]):
            raise UserError(f"{path}: a quote opens in row {len(self._rows) - 1} and never closes")
        digest.update(data)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        cells = self._rows[index]
        if len(cells) > len(self._header):
            raise BadRow(f"its line has {len(cells)} cells, the header {len(self._header)}")
        return {name: cell or None for name, cell in zip(self._header, cells, strict=False)}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


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
