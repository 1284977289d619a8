"""Rows with images: what a column holds, and what makes a row unusable.

Images come undecoded, so that a broken one is a fault of its row and not of the batch it travels in. Only images
whose bytes stand in the row are read: a path in a cell is not followed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from emu3.errors import UserError
from emu3.tokenizer.images import read_image


class BadRow(Exception):
    """A row that cannot be tokenised. The message says why."""


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
class ImageRow:
    """A usable row, its pictures in RGB. The digests are of the encoded bytes: equal digests are equal pictures."""

    id: str
    source: Image.Image
    source_digest: str
    edited: Image.Image | None
    edited_digest: str | None
    instruction: str
    cot: Mapping[str, str]
    task: str | None


def row_id(values: Mapping[str, Any], columns: Columns, index: int) -> str:
    """What a row is called: its id column, or its number in the data set."""
    return str(values[columns.id]) if columns.id is not None else str(index)


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
        cot={key: str(values[key]) for key in columns.cot if values[key] not in (None, "")},
        task=None if columns.task is None or values[columns.task] is None else str(values[columns.task]),
    )


def _instruction(cell: Any) -> str:
    if isinstance(cell, list):  # several wordings: the published pipeline takes the first
        cell = cell[0] if cell else None
    if not isinstance(cell, str) or not cell.strip():
        raise BadRow("empty instruction")
    return cell


def _image(cell: Any, column: str) -> tuple[Image.Image, str]:
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if not isinstance(data, bytes) or not data:
        raise BadRow(f"{column} holds no image bytes")
    try:
        return read_image(io.BytesIO(data), column), hashlib.sha256(data).hexdigest()
    except UserError as error:
        raise BadRow(str(error)) from error
