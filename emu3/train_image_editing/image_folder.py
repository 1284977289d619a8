"""An image folder: a JSONL file with one edit per line whose pictures are files, named relative to its folder.

    {"input": "images/1-before.png", "output": "images/1-after.png", "instruction": "make the sky purple"}

Only the places of the lines are held (8 bytes each); a line is read when its turn comes, and its pictures later
still, where they are decoded.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageFile

_LINES_FOR_COLUMNS = 100
_LINES_FOR_CONTENTS = 1000


class ImageFolder:
    """The rows of `table`, a JSONL file, in its order; blank lines are none.

    contents: SHA-256 of the file and of the sizes of the pictures of up to 1,000 rows, spread evenly. Looking at all
    of them would cost minutes on a network disk, so a few pictures replaced under their old names go unnoticed.
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
            digest.update(repr(_picture_sizes(row)).encode())
        self.contents = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | BadRow]:
        """The rows of these numbers, pictures as `ImageFile`; one whose line is no JSON object comes as a BadRow."""
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


def _picture_sizes(row: Mapping[str, Any] | BadRow) -> list[int]:
    """Bytes of each picture of a row, -1 for one that cannot be read."""
    if isinstance(row, BadRow):
        return []
    return [cell.size() for cell in row.values() if isinstance(cell, ImageFile)]
