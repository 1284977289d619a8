"""People's ratings of edits, from a CSV, JSON or Parquet file with a row per rating.

Several ratings of one edit are averaged. The scale is theirs: ratings are correlated with scores, never subtracted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.files import read_json


class Key(NamedTuple):
    """One edit of one sample."""

    benchmark: str
    id: str
    model: str


@dataclass(frozen=True)
class Columns:
    """Names of the columns. That of the benchmark may be absent from the file."""

    id: str = "id"
    model: str = "model"
    rating: str = "rating"
    benchmark: str = "benchmark"


def read_ratings(path: Path, columns: Columns, keys: Sequence[Key]) -> dict[Key, float]:
    """Mean ratings of those edits of `keys` that the file rates. Without a column for the benchmark an id may occur in
    one benchmark only. Raises `UserError` for a missing column and for a rating that is no number."""
    rows = _rows(path)
    wanted = (columns.id, columns.model, columns.rating)
    if not rows or (missing := [name for name in wanted if name not in rows[0]]):
        raise UserError(f"{path} has no ratings" if not rows else f"{path} has no column {missing[0]!r}")
    with_benchmark = columns.benchmark in rows[0]
    found: dict[tuple[str, ...], list[float]] = {}
    for number, row in enumerate(rows, start=1):
        sample = (str(row[columns.id]), str(row[columns.model]))
        key = (str(row[columns.benchmark]), *sample) if with_benchmark else sample
        try:
            rating = float(row[columns.rating])
        except (TypeError, ValueError):
            rating = math.nan
        if not math.isfinite(rating):
            raise UserError(f"{path}, rating {number}: {row[columns.rating]!r} is no number")
        found.setdefault(key, []).append(rating)
    if not with_benchmark and len({(key.id, key.model) for key in keys}) < len(keys):
        raise UserError(f"{path} has no column {columns.benchmark!r}, and ids occur in several benchmarks")
    told = {key: tuple(key) if with_benchmark else (key.id, key.model) for key in keys}
    return {key: sum(found[name]) / len(found[name]) for key, name in told.items() if name in found}


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} is not a list of ratings")
        return rows
    if path.suffix == ".parquet":
        try:
            return pq.read_table(path).to_pylist()
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is not a Parquet file: {error}") from None
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
