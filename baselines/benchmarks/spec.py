"""What a benchmark is to the evaluation: where its files are, what its columns are called, which rows count.

The paper sorts its benchmarks into simple edits (one object, one attribute) and complex ones (counting, relations,
actions). A row's split is its `split` column where the data has one, else its task's entry in `splits`, else the
benchmark's own `split`. The benchmarks of the paper stand in `known`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class Subset:
    """`rows` rows in the order of `datasets.Dataset.shuffle(seed=seed).select(range(rows))`."""

    seed: int
    rows: int

    def of(self, total: int) -> list[int]:
        """The row numbers, of `total`; all of them, shuffled, where there are fewer than `rows`."""
        order: list[int] = np.random.default_rng(self.seed).permutation(total)[: self.rows].tolist()
        return order


@dataclass(frozen=True)
class Benchmark:
    """Column names of a benchmark, None where it has no such column, and the rules that choose and mend its rows.

    `source` and `target` hold pictures, `target` may be null in single rows. Without `id` the row number is the id.
    `source_set` tells the part of the benchmark that a row comes from. The captions describe the picture before and
    after the edit; `mask` holds a picture of the source's size, white where the edit belongs. They may be null, too.

    hub: id on the Hugging Face Hub; None for data of one's own. revision: None takes the default branch. files: the
    Parquet files there, as patterns.
    where: a column and the value that a row must have in it. subset: applied to the rows that are left.
    file_tasks: the task is the one of these words that stands in the name of a row's file.
    drop_prefix: taken off the front of an instruction.
    title: what the paper calls it. licence: what its publisher says, as far as that was found. rows: of the published
    files, before `where` and `subset`, where known.
    """

    name: str
    source: str
    instruction: str
    target: str | None = None
    task: str | None = None
    id: str | None = None
    source_set: str | None = None
    source_caption: str | None = None
    target_caption: str | None = None
    mask: str | None = None
    split: str = "all"
    splits: Mapping[str, str] = field(default_factory=dict)
    hub: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    where: tuple[str, str] | None = None
    subset: Subset | None = None
    file_tasks: tuple[str, ...] = ()
    drop_prefix: str = ""
    title: str = ""
    licence: str = ""
    rows: int | None = None

    def rules(self) -> dict[str, Any]:
        """What decides the content of the samples, as JSON values; not where the files are or whose they are."""
        about = ("hub", "revision", "files", "title", "licence", "rows")
        return {key: value for key, value in asdict(self).items() if key not in about}


GENERIC = Benchmark(name="data", source="input", instruction="instruction")
