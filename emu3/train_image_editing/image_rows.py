"""Rows with images: what a cell holds, and what makes a row unusable. The one reader of cells for every command.

Images come undecoded, so that a broken one is a fault of its row and not of the batch it travels in. A path in a cell
is not followed, unless the row's own source says what folder it may lead into (`ImageFile`). Text is checked here,
where it enters: what UTF-8 cannot hold would end a run later, when a shard or a table is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from emu3.errors import UserError, utf8_fault
from emu3.tokenizer.images import MAX_BYTES, image_size, read_image

IMAGE_CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How Hugging Face's `Image` feature lies in Parquet and Arrow."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs has not fetched yet."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s_-]{64,}={0,2}\s*")


class BadRow(Exception):
    """A row that cannot be used. The message says why."""


@dataclass(frozen=True)
class Columns:
    """Column names. Those that may be None are optional; without `id` a row is called by its number.

    masks, texts: further columns that have to be there. extra: further ones that are read where they are there.
    """

    source: str
    instruction: str
    edited: str | None = None
    cot: tuple[str, ...] = ()
    id: str | None = None
    task: str | None = None
    masks: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Every column that has to be there, once."""
        named = [self.source, self.instruction, self.edited, *self.cot, self.id, self.task, *self.masks, *self.texts]
        return list(dict.fromkeys(name for name in named if name is not None))

    def images(self) -> set[str]:
        return {name for name in (self.source, self.edited, *self.masks) if name is not None}


@dataclass(frozen=True)
class ImageFile:
    """An image cell that names a file; it is read when it is needed, and only from inside `folder`, an absolute path.

    Links count as what they lead to.
    """

    folder: Path
    name: str

    def read(self) -> bytes:
        """The bytes of the file. Raises BadRow if there is no such file in the folder, or it is too large."""
        path = self._path()
        if path.stat().st_size > MAX_BYTES:
            raise BadRow(f"{self.name!r} has more than {MAX_BYTES} bytes")
        return path.read_bytes()

    def size(self) -> int:
        """Bytes of the file; -1 if there is no such file in the folder."""
        try:
            return self._path().stat().st_size
        except BadRow:
            return -1

    def _path(self) -> Path:
        try:
            named = self.folder / self.name
            path = named.resolve()
            found = path.is_file()
        except (OSError, ValueError, RuntimeError):  # a name that is too long, holds a NUL, or is a circle of links
            found, path = False, self.folder
        shown = repr(self.name[:80])
        if not found and (_ADDRESS.match(self.name) or _BASE64.fullmatch(self.name)):
            raise BadRow(f"holds {_kind(self.name)}, not the name of a file")
        if path == self.folder:
            raise BadRow(f"{shown} is no file name")
        if not path.is_relative_to(self.folder):
            raise BadRow(f"{shown} leads out of the folder")
        if not found:
            raise BadRow(
                f"{shown} {'is a link to what' if named.is_symlink() else ''} does not exist".replace("  ", " ")
            )
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
    """What a row is called: its id column, or its number in the dataset if it has none that can be written."""
    try:
        return str(index) if columns.id is None else read_text(values[columns.id], columns.id) or str(index)
    except BadRow:
        return str(index)


def read_row(values: Mapping[str, Any], columns: Columns, index: int) -> ImageRow:
    """Decode one row. Raises BadRow for an unreadable image or text and an empty instruction; no target is no fault."""
    if columns.id is not None:
        read_text(values[columns.id], columns.id)
    source, source_digest = _decoded(values[columns.source], columns.source)
    edited, edited_digest = None, None
    if columns.edited is not None and values[columns.edited] is not None:
        edited, edited_digest = _decoded(values[columns.edited], columns.edited)
    return ImageRow(
        id=row_id(values, columns, index),
        source=source,
        source_digest=source_digest,
        edited=edited,
        edited_digest=edited_digest,
        instruction=read_instruction(values, columns),
        cot={key: text for key in columns.cot if (text := read_text(values[key], key, nested=True))},
        task=None if columns.task is None else read_text(values[columns.task], columns.task),
    )


def read_instruction(values: Mapping[str, Any], columns: Columns) -> str:
    """The instruction of a row, the first of several. Raises BadRow if it is empty or no text."""
    cell = values[columns.instruction]
    if cell is not None and not isinstance(cell, (str, bytes, list, tuple)):
        raise BadRow(f"{columns.instruction} holds {_kind(cell)}, not text")
    text = read_text(cell, columns.instruction)
    if text is None:
        raise BadRow("empty instruction")
    return text


def read_text(cell: Any, column: str, nested: bool = False) -> str | None:
    """The text in a cell, None for what shows nothing; of a list of texts the first, of a number its digits.

    Binary cells that are UTF-8 are text. nested: lists and dicts become JSON. Raises BadRow for what is no text, or
    one that UTF-8 cannot hold.
    """
    if isinstance(cell, bytes):
        cell = _plain(cell, column)
    if nested and isinstance(cell, (list, tuple, Mapping)):
        cell = json.dumps(cell, ensure_ascii=False, default=lambda part: _plain(part, column)) if cell else None
    elif isinstance(cell, (list, tuple)):  # several wordings: the published pipeline takes the first
        if cell and not isinstance(cell[0], (str, bytes, type(None))):
            raise BadRow(f"{column} holds {_kind(cell)}, not text")
        return read_text(cell[0], column) if cell else None
    elif isinstance(cell, Mapping):
        raise BadRow(f"{column} holds {_kind(cell)}, not text")
    if cell is None or cell != cell:  # NaN is what pandas writes for nothing
        return None
    text = cell if isinstance(cell, str) else str(cell)
    if fault := utf8_fault(text):
        raise BadRow(f"{column} {fault}")
    return text if any(letter.isprintable() and not letter.isspace() for letter in text) else None


def _plain(cell: Any, column: str) -> str:
    """What is no JSON as text. Raises BadRow for bytes that are not UTF-8."""
    try:
        return cell.decode() if isinstance(cell, bytes) else str(cell)
    except UnicodeDecodeError as error:
        raise BadRow(f"{column} is not UTF-8: byte 0x{cell[error.start]:02x} at {error.start}") from None


def image_bytes(cell: Any, column: str) -> bytes:
    """The encoded image in a cell. Raises BadRow, naming what is there instead."""
    try:
        data = cell.read() if isinstance(cell, ImageFile) else cell.get("bytes") if isinstance(cell, Mapping) else cell
    except BadRow as error:
        raise BadRow(f"{column}: {error}") from None
    except OSError as error:
        raise BadRow(f"{column}: {cell.name!r} cannot be read ({error.strerror})") from error
    if isinstance(data, bytes) and data:
        if data.startswith(LFS_POINTER):
            raise BadRow(f"{column} is a git-lfs pointer, not the image: fetch it with `git lfs pull`")
        return data
    raise BadRow(f"{column} holds {_kind(cell)}, not an image")


def cell_size(cell: Any, column: str) -> tuple[int, int]:
    """Width and height of the image in a cell as it states them, undecoded; (0, 0) if that is not known."""
    try:
        return image_size(io.BytesIO(image_bytes(cell, column)))
    except BadRow:
        return (0, 0)


def _decoded(cell: Any, column: str) -> tuple[Image.Image, str]:
    data = image_bytes(cell, column)
    try:
        return read_image(io.BytesIO(data), column), hashlib.sha256(data).hexdigest()
    except UserError as error:
        raise BadRow(str(error)) from error


def _kind(cell: Any) -> str:
    """What a cell holds that should be something else, for a message."""
    match cell:
        case None | b"" | "":
            return "nothing"
        case str() if _ADDRESS.match(cell):
            return f"an address ({ascii(cell[:40])[1:-1]}...)"
        case str() if _BASE64.fullmatch(cell):
            return "text (base64?)"
        case str():
            return f"text ({cell[:40]!a})"
        case {"bytes": None | b"", "path": str() as path}:
            return f"the path {path[:80]!a} without the image's bytes"
        case {"bytes": None | b""}:
            return "nothing"
        case {}:
            return f"a dict of {', '.join(ascii(str(key))[1:-1] for key in list(cell)[:4])}"
        case [first, *_]:
            return f"a list of {type(first).__name__}s"
        case []:
            return "an empty list"
    return f"a {type(cell).__name__}"
