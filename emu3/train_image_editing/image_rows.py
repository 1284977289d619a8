"""Rows with images: what a column holds, and what makes a row unusable.

Images come undecoded, so that a broken one is a fault of its row and not of the batch it travels in. A path in a cell
is not followed, unless the row's own source says what folder it may lead into (`ImageFile`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from emu3.errors import UserError
from emu3.tokenizer.images import read_image


class BadRow(Exception):
    """A row that cannot be tokenized. The message says why."""


@dataclass(frozen=True)
class Columns:
    """Column names. Those that may be None are optional; without `id` a row is called by its number."""

    source: str
    instruction: str
    edited: str | None = None
    cot: tuple[str, ...] = ()
    id: str | None = None
    task: str | None = None

    def names(self) -> list[str]:
        named = [self.source, self.instruction, self.edited, *self.cot, self.id, self.task]
        return [name for name in named if name is not None]


@dataclass(frozen=True)
class ImageFile:
    """An image cell that names a file; it is read when it is needed, and only from inside `folder`, an absolute path.

    Links count as what they lead to.
    """

    folder: Path
    name: str

    def read(self) -> bytes:
        """The bytes of the file. Raises BadRow if there is no such file in the folder."""
        return self._path().read_bytes()

    def size(self) -> int:
        """Bytes of the file; -1 if there is no such file in the folder."""
        try:
            return self._path().stat().st_size
        except BadRow:
            return -1

    def _path(self) -> Path:
        try:
            path = (self.folder / self.name).resolve()
            found = path.is_file()
        except (OSError, ValueError, RuntimeError):  # a name that is too long, holds a NUL, or is a circle of links
            raise BadRow(f"{self.name!r} is no file name") from None
        if not path.is_relative_to(self.folder):
            raise BadRow(f"{self.name!r} leads out of the folder")
        if not found:
            raise BadRow(f"{self.name!r} does not exist")
        return path


@dataclass(frozen=True)
class ImageRow:
    """A usable row, its images in RGB. The digests are of the encoded bytes: equal digests are equal images."""

    id: str
    source: Image.Image
    source_digest: str
    edited: Image.Image | None
    edited_digest: str | None
    instruction: str
    cot: Mapping[str, str]
    task: str | None


def row_id(values: Mapping[str, Any], columns: Columns, index: int) -> str:
    """What a row is called: its id column, or its number in the dataset if it has none."""
    return str(index) if columns.id is None or values[columns.id] is None else str(values[columns.id])


def read_row(values: Mapping[str, Any], columns: Columns, index: int) -> ImageRow:
    """Decode one row. Raises BadRow for an unreadable image or an empty instruction; no target image is no fault."""
    source, source_digest = _image(values[columns.source], columns.source)
    edited, edited_digest = None, None
    if columns.edited is not None and values[columns.edited] is not None:
        edited, edited_digest = _image(values[columns.edited], columns.edited)
    return ImageRow(
        id=row_id(values, columns, index),
        source=source,
        source_digest=source_digest,
        edited=edited,
        edited_digest=edited_digest,
        instruction=_instruction(values[columns.instruction]),
        cot={key: text for key in columns.cot if (text := _text(values[key]))},
        task=None if columns.task is None or values[columns.task] is None else str(values[columns.task]),
    )


def _instruction(cell: Any) -> str:
    if isinstance(cell, list):  # several wordings: the published pipeline takes the first
        cell = cell[0] if cell else None
    if not isinstance(cell, str) or not cell.strip():
        raise BadRow("empty instruction")
    return cell


def _text(cell: Any) -> str:
    """A reasoning text as it is, anything else as JSON; empty for nothing and for blanks."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return ""
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)


def _image(cell: Any, column: str) -> tuple[Image.Image, str]:
    try:
        data = cell.read() if isinstance(cell, ImageFile) else cell.get("bytes") if isinstance(cell, Mapping) else cell
    except BadRow as error:
        raise BadRow(f"{column}: {error}") from None
    except OSError as error:
        raise BadRow(f"{column}: {cell.name!r} cannot be read ({error.strerror})") from error
    if not isinstance(data, bytes) or not data:
        raise BadRow(f"{column} holds no image bytes")
    try:
        return read_image(io.BytesIO(data), column), hashlib.sha256(data).hexdigest()
    except UserError as error:
        raise BadRow(str(error)) from error
