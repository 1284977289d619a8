"""A dataset of edits by its name: Parquet files from the Hub or the disk, or an image folder with a JSONL file.

Whatever it is, its rows are read a few at a time, in ascending order, and it has a digest of its contents, so that
a run that goes on with changed data is noticed. From the Hub it comes by id and revision into huggingface_hub's own
cache. The listing of a commit is cached with its files, so with `HF_HUB_OFFLINE=1`, or without a network, the same
calls answer from the cache, and notice files that are not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from emu3.errors import UserError
from emu3.hub import HubDataset
from emu3.train_image_editing.image_rows import BadRow, Columns
from emu3.train_image_editing.row_files import ImageFolder, ParquetRows

_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")


class RowSource(Protocol):
    """Rows with undecoded images. contents: a digest that changes when the data does."""

    contents: str

    def __len__(self) -> int: ...

    def read(self, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | BadRow]:
        """Cells by column for each of the ascending row numbers; a row that cannot be read comes as a BadRow."""
        ...


def open_rows(name: str, source: Literal["HF", "local"], split: str | None, columns: Columns) -> RowSource:
    """Open a dataset.

    name: a Hub id with Parquet files, or id@revision (HF); or a Parquet file, a folder of
    them, a JSONL file, or a folder with one (local). split: default "train" on the Hub, all files of a folder.
    Raises UserError if there is no such dataset, it is empty, or a column is missing.
    """
    rows = _hub_rows(name, split or "train", columns) if source == "HF" else _local_rows(Path(name), split, columns)
    if not len(rows):
        raise UserError(f"dataset {name} is empty")
    return rows


def of_split(names: Sequence[str], split: str) -> list[str]:
    """Those of the files `names` whose path holds the split's name as a word, as in data/train-00000-of-00002.parquet.

    Where no file names any split, all are "train".
    """
    if split == "train" and not any(_mentions(name, word) for name in names for word in _SPLITS):
        return list(names)
    return [name for name in names if _mentions(name, split)]


def _mentions(name: str, word: str) -> bool:
    return re.search(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])", name.lower()) is not None


def _hub_rows(name: str, split: str, columns: Columns) -> RowSource:
    data = HubDataset(name)
    names = [file for file in data.names if file.endswith(".parquet")]
    if not names:
        raise UserError(
            f"{name} has no Parquet files: try its automatic conversion, "
            f"{name.partition('@')[0]}@refs/convert/parquet, or download it and use --source local"
        )
    chosen = _require_split(name, names, split)
    root = data.fetch(chosen)
    return ParquetRows([root / file for file in chosen], root, columns)


def _local_rows(path: Path, split: str | None, columns: Columns) -> RowSource:
    if path.is_file():
        return ImageFolder(path, columns) if path.suffix == ".jsonl" else ParquetRows([path], path.parent, columns)
    if not path.is_dir():
        raise UserError(f"dataset {path} does not exist; one from the Hub needs --source HF")
    if names := sorted(file.relative_to(path).as_posix() for file in path.rglob("*.parquet")):
        chosen = names if split is None else _require_split(str(path), names, split)
        return ParquetRows([path / name for name in chosen], path, columns)
    tables = sorted(file.name for file in path.glob("*.jsonl"))
    if split is not None and tables:
        tables = _require_split(str(path), tables, split)
    if "metadata.jsonl" in tables:
        tables = ["metadata.jsonl"]
    if len(tables) != 1:
        found = f"has {', '.join(tables)}: name one of them" if tables else "has no Parquet and no JSONL file"
        raise UserError(f"dataset {path} {found}")
    return ImageFolder(path / tables[0], columns)


def _require_split(name: str, files: Sequence[str], split: str) -> list[str]:
    if chosen := of_split(files, split):
        return chosen
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    raise UserError(f"{name} has no files of split {split!r}; it has {', '.join(files[:5])}{more}")
