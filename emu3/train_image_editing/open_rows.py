"""A data set of edits from the Hub or from Parquet files, opened by `datasets` and checked before anything is done.

Apart from `image_rows`, so that who has rows already need not wait for the library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import Columns


def open_rows(name: str, source: Literal["HF", "local"], split: str | None, columns: Columns) -> datasets.Dataset:
    """Open a data set with its images undecoded.

    name: a Hub id (HF), or a Parquet file or a folder of them (local). split: of the Hub data set, default "train";
    for a folder, default all of its Parquet files.
    Raises UserError if there is no such data set, it is empty, or a column is missing.
    """
    # What goes wrong is said once, by the error below.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        rows = _load(name, source, split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UserError(f"data set {name} cannot be opened: {reason[0] if reason else error!r}") from error
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
    filled = [str(file) for file in files if _row_count(file)]
    if not filled:  # `datasets` fails on a file without rows, and does not say why
        raise UserError(f"data set {name} is empty")
    return datasets.load_dataset("parquet", data_files=filled, split="train")


def _row_count(file: Path) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a Parquet file: {error}") from None
