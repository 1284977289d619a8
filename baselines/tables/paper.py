"""The paper's scores (arXiv:2508.01119v3), as printed, and where each of them is found in results of our own.

`published.json` holds the tables: Table 2, 3, 6, 7 and 10 to 17. A row has the names under which its model may run
here, a column says which benchmark, tasks, metric or part its cells are about. Only numbers are kept, no wording of
the paper. Left out are Tables 4, 5 (correlation with human ratings), 8, 9 (CLIP and FID, means over three benchmarks)
and 18 (training time).

Beside them a model of ours takes four lines: its score with the 95% interval, the published score, the difference, and
how many samples were judged and failed. The difference is marked where the published score lies outside our interval,
widened by the square root of 2: published scores come without intervals, and one as noisy as ours would otherwise be
marked 17 times of 100 though both came from the same model. Where another judge or another
protocol than the published one made our score, the cell says so in place of a difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from baselines.results.records import VIESCORE, WHOLE_SET, ScoredSample
from baselines.tables.conditions import ByModel, Conditions, condition_lines
from baselines.tables.grid import UNKNOWN, Grid, code, fixed
from baselines.tables.statistics import RESAMPLES, Interval, Sampled, estimate, runs_of
from emu3.errors import UserError

FILE = Path(__file__).with_name("published.json")
MAIN_TABLE = 2
OUTSIDE = "*"
NOTE = (
    f"Ours with its 95% interval; {OUTSIDE} marks a published score outside it after it was widened by the square "
    "root of 2, for the published score's own noise. Not adjusted for the number of comparisons. A difference is shown "
    "where judge and protocol are the published ones."
)

ScoreIndex = dict[tuple[str, str, str], list[ScoredSample]]


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


@dataclass(frozen=True)
class Measured:
    """Our side of one cell. runs: the values behind it by the name of the run. not_compared: why there is no difference
    to the published score. with_zeros: the mean with failures as 0."""

    mean: float | None
    ci95: Interval | None
    n: int
    failed: int
    runs: dict[str, Sampled]
    not_compared: str = ""
    with_zeros: float | None = None


def printed(table: PublishedTable) -> Grid:
    """The published table as it is printed."""
    rows = [[row.name, *(f"{cell:.{table.decimals}f}" for cell in row.cells)] for row in table.rows]
    return Grid(_title(table), ["", *(column.title for column in table.columns)], rows, table.note)


def compare(
    table: PublishedTable,
    scores: Sequence[ScoredSample],
    conditions: ByModel,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Grid:
    """The published table with our scores between its lines; models that were not run keep their published line."""
    index = _index(scores)
    lines: list[list[str]] = []
    shown: list[str] = []
    for row in table.rows:
        ours = _measure_row(row, table.columns, index, conditions, resamples, seed)
        if any(cell.n or cell.failed for cell in ours):
            lines += _block(row, ours, table.decimals)
            shown += [model for model, _ in conditions if model_key(model) in row.models]
        else:
            lines.append([row.name, "published", *(f"{cell:.{table.decimals}f}" for cell in row.cells)])
    columns = ["", "", *(column.title for column in table.columns)]
    note = " ".join(filter(None, [NOTE, table.note]))
    return Grid(_title(table), columns, lines, note, blocks=True, conditions=condition_lines(conditions, shown))


def comparison_of(
    models: Sequence[str],
    scores: Sequence[ScoredSample],
    conditions: ByModel,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Grid | None:
    """Those of `models` that the paper has a row for, beside it; None where nothing of theirs can be compared."""
    main = next(table for table in tables() if table.number == MAIN_TABLE)
    index = _index(scores)
    lines: list[list[str]] = []
    shown: list[str] = []
    for model in models:
        row = row_of(model)
        if row is not None:
            own = PublishedRow(code(model), (model_key(model),), row.cells)
            ours = _measure_row(own, main.columns, index, conditions, resamples, seed)
            if any(cell.n for cell in ours):
                lines += _block(own, ours, main.decimals)
                shown.append(model)
    if not lines:
        return None
    heads = ["", "", *(column.title for column in main.columns)]
    about = condition_lines(conditions, shown)
    return Grid("Beside the published scores", heads, lines, NOTE, blocks=True, conditions=about)


def _title(table: PublishedTable) -> str:
    return f"Table {table.number}: {table.title}"


def _index(scores: Sequence[ScoredSample]) -> ScoreIndex:
    index: ScoreIndex = {}
    for score in scores:
        index.setdefault((model_key(score.model), normal(score.benchmark), score.metric), []).append(score)
    return index


def _measure_row(
    row: PublishedRow,
    columns: Sequence[PublishedColumn],
    index: ScoreIndex,
    conditions: ByModel,
    resamples: int,
    seed: int,
) -> list[Measured]:
    measured: list[Measured] = []
    for column in columns:
        if column.average:
            measured.append(_average(measured, resamples, seed))
        else:
            measured.append(_measure(row, column, index, conditions, resamples, seed))
    return measured


def _measure(
    row: PublishedRow, column: PublishedColumn, index: ScoreIndex, conditions: ByModel, resamples: int, seed: int
) -> Measured:
    found = [score for model in row.models for score in index.get((model, column.benchmark, column.metric), [])]
    if len(names := sorted({score.model for score in found})) > 1:
        raise UserError(f"{' and '.join(names)} are both known as {row.name!r}: keep one of them, or rename the other")
    not_compared = ""
    if found and column.metric == VIESCORE:
        not_compared = conditions.get((found[0].model, found[0].benchmark), Conditions()).difference_means_nothing
    if column.tasks:
        found = [score for score in found if {normal(score.task), normal(score.source_set)} & set(column.tasks)]

    def printed_value(score: ScoredSample) -> float | None:
        value = score.value if row.part is None or score.value is None else score.parts.get(row.part)
        return None if value is None else column.scale * value

    runs = runs_of([found], printed_value)
    about = estimate(list(runs.values()), resamples=resamples, seed=seed)
    scored = [score for score in found if score.value is not None]
    return Measured(
        mean=about.mean,
        ci95=about.ci95,
        n=sum(int(score.parts["n"]) if score.id == WHOLE_SET else 1 for score in scored),
        failed=len(found) - len(scored),
        runs={name: run for name, [run] in runs.items()},
        not_compared=not_compared,
        with_zeros=sum(float(run.values.sum()) for [run] in runs.values()) / len(found) if found else None,
    )


def _average(columns: Sequence[Measured], resamples: int, seed: int) -> Measured:
    names = list(dict.fromkeys(name for column in columns for name in column.runs))
    empty = Sampled(np.array([]), ())
    about = estimate(
        [[column.runs.get(name, empty) for column in columns] for name in names], resamples=resamples, seed=seed
    )
    zeros = [column.with_zeros for column in columns if column.with_zeros is not None]
    return Measured(
        mean=about.mean,
        ci95=about.ci95,
        n=sum(column.n for column in columns),
        failed=sum(column.failed for column in columns),
        runs={},
        not_compared=next((column.not_compared for column in columns if column.not_compared), ""),
        with_zeros=float(np.mean(zeros)) if len(zeros) == len(columns) else None,
    )


def _block(row: PublishedRow, ours: Sequence[Measured], decimals: int) -> list[list[str]]:
    pairs = list(zip(ours, row.cells, strict=True))
    lines = [
        [row.name, "ours", *(_with_interval(cell, decimals) for cell in ours)],
        ["", "published", *(f"{cell:.{decimals}f}" for cell in row.cells)],
        ["", "difference", *(_difference(cell, published, decimals) for cell, published in pairs)],
        ["", "n (failed)", *(f"{cell.n} ({cell.failed})" for cell in ours)],
    ]
    if any(cell.failed and not cell.not_compared for cell in ours):  # as the published evaluation took its means
        known = [UNKNOWN if cell.with_zeros is None else f"{cell.with_zeros:.{decimals}f}" for cell in ours]
        lines.append(["", "failures as 0", *known])
    return lines


def _with_interval(cell: Measured, decimals: int) -> str:
    if cell.mean is None:
        return UNKNOWN
    if cell.ci95 is None:
        return f"{cell.mean:.{decimals}f}"
    return f"{cell.mean:.{decimals}f} [{cell.ci95[0]:.{decimals}f}, {cell.ci95[1]:.{decimals}f}]"


def _difference(cell: Measured, published: float, decimals: int) -> str:
    if cell.mean is None:
        return UNKNOWN
    if cell.not_compared:
        return f"none: {cell.not_compared}"
    low, high = cell.ci95 or (cell.mean, cell.mean)
    wide = 2**0.5  # the published score has a noise of its own, as large as ours as far as anybody knows
    outside = cell.ci95 is not None and not wide * (low - cell.mean) <= published - cell.mean <= wide * (
        high - cell.mean
    )
    return fixed(cell.mean - published, decimals, "+") + (OUTSIDE if outside else "")
