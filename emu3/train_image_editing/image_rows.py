"""Rows with images, from the Hub or from Parquet files: what a column holds, and what makes a row unusable.

`datasets` does the reading. Images are taken undecoded, so that a broken one is a fault of its row and not of the
batch it travels in. Only images whose bytes stand in the row are read: a path in a cell is not followed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
from PIL import Image, ImageOps, UnidentifiedImageError

from emu3.errors import UserError


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
    """A usable row. The digests are of the encoded bytes: equal digests are equal pictures."""

    id: str
    source: Image.Image
    source_digest: str
    edited: Image.Image | None
    edited_digest: str | None
    instruction: str
    cot: Mapping[str, str]
    task: str | None


def open_rows(name: str, source: Literal["HF", "local"], split: str | None, columns: Columns) -> datasets.Dataset:
    """Open a data set with its images undecoded.

    name: a Hub id (HF), or a Parquet file or a folder of them (local). split: of the Hub data set, default "train";
    for a folder, default all of its Parquet files.
    Raises UserError if there is no such data set, it is empty, or a column is missing.
    """
    try:
        rows = _load(name, source, split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data set {name} cannot be opened: {str(error).splitlines()[0]}") from error
    missing = [column for column in columns.names() if column not in rows.column_names]
    if missing:
        raise UserError(f"data set {name} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}")
    if not len(rows):
        raise UserError(f"data set {name} is empty")
    rows = rows.select_columns(list(dict.fromkeys(columns.names())))
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _load(name: str, source: Literal["HF", "local"], split: str | None) -> datasets.Dataset:
    if source == "HF":
        return datasets.load_dataset(name, split=split or "train")
    path = Path(name)
    if split is not None and path.is_dir():
        return datasets.load_dataset(str(path), split=split)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise UserError(f"{path} is no Parquet file and no folder with some")
    return datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")


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
        raise BadRow(f"{column}: no image bytes")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return ImageOps.exif_transpose(image), hashlib.sha256(data).hexdigest()
    except Exception as error:  # a decoder fed with garbage raises nearly anything, and one row must not end a run
        # Its message holds a memory address, and equal input has to give equal bytes.
        why = "unknown format" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        raise BadRow(f"{column}: unreadable image ({why})") from error
