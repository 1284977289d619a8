"""The paper's scores (arXiv:2508.01119v3), as printed, and where each of them is found in results of our own.

`published.json` holds the tables: Table 2, 3, 6, 7 and 10 to 17. A row has the names under which its model may run
here, a column says which benchmark, tasks, metric or part its cells are about. Only numbers are kept, no wording of
the paper. Left out are Tables 4, 5 (correlation with human ratings), 8, 9 (CLIP and FID, means over three benchmarks)
and 18 (training time).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from baselines.results.records import VIESCORE

FILE = Path(__file__).with_name("published.json")
MAIN_TABLE = 2


@dataclass(frozen=True)
class PublishedColumn:
    """What a column's cells are the mean of: a benchmark, cut down to `tasks` if there are any.

    average: the plain mean of the columns before it, instead. scale: what the metric is multiplied by for print.
    """

    title: str
    benchmark: str = ""
    tasks: tuple[str, ...] = ()
    metric: str = VIESCORE
    scale: float = 1.0
    average: bool = False


@dataclass(frozen=True)
class PublishedRow:
    """cells: the printed numbers, one per column. models: names of the model here, as `model_key` has them. part: the
    part of VIEScore that the cells are about, None for the score itself."""

    name: str
    models: tuple[str, ...]
    cells: tuple[float, ...]
    base: str = ""
    part: str | None = None


@dataclass(frozen=True)
class PublishedTable:
    """One table of the paper; `decimals` as it prints them."""

    number: int
    title: str
    columns: tuple[PublishedColumn, ...]
    rows: tuple[PublishedRow, ...]
    decimals: int = 2
    note: str = ""


def normal(name: str) -> str:
    """A name of a model, a benchmark or a task without case and punctuation: `Omni-Edit` and `omniedit` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def model_key(name: str) -> str:
    """`normal` of a model's name, without the revision that stands behind an `@`."""
    return normal(name.partition("@")[0])


@cache
def _file() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def published_judge() -> str:
    """The judge of all VIEScores in the tables."""
    return _file()["judge"]


@cache
def tables() -> tuple[PublishedTable, ...]:
    """All tables that are kept, by number."""
    return tuple(_table(entry) for entry in _file()["tables"])


@cache
def benchmarks() -> dict[str, str]:
    """The six benchmarks of the main table in its order: normal name to printed title."""
    main = next(table for table in tables() if table.number == MAIN_TABLE)
    return {column.benchmark: column.title for column in main.columns if not column.average}


def row_of(model: str) -> PublishedRow | None:
    """The published row over the six benchmarks of a model that is called so here, None where there is none."""
    for table in tables():
        if set(benchmarks()) <= {column.benchmark for column in table.columns}:
            for row in table.rows:
                if row.part is None and model_key(model) in row.models:
                    return row
    return None


def title_of(benchmark: str) -> str:
    """How the paper prints a benchmark's name; one that it does not have keeps its own."""
    return benchmarks().get(normal(benchmark), benchmark)


def in_published_order(titles: Sequence[str]) -> list[str]:
    """Benchmarks of the paper in its order, then the others as they come."""
    order = list(benchmarks().values())
    return sorted(titles, key=lambda title: order.index(title) if title in order else len(order))


def _table(entry: dict[str, Any]) -> PublishedTable:
    columns = tuple(
        PublishedColumn(**(column | {"tasks": tuple(column.get("tasks", ()))})) for column in entry["columns"]
    )
    rows = tuple(
        PublishedRow(**(row | {"models": tuple(map(model_key, row["models"])), "cells": tuple(row["cells"])}))
        for row in entry["rows"]
    )
    return PublishedTable(**(entry | {"columns": columns, "rows": rows}))
