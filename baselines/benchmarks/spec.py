"""What a benchmark is to the evaluation: the names of its columns and which half of the paper it belongs to.

The paper sorts its benchmarks into simple edits (one object, one attribute) and complex ones (counting, relations,
actions). A row's split is its `split` column where the data has one, else its task's entry in `splits`, else the
benchmark's own `split`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class Benchmark:
    """Column names of a benchmark; None where it has no such column.

    `source` and `target` hold pictures, `target` may be null in single rows. Without `id` the row number is the id.
    """

    name: str
    source: str
    instruction: str
    target: str | None = None
    task: str | None = None
    id: str | None = None
    split: str = "all"
    splits: Mapping[str, str] = field(default_factory=dict)


GENERIC = Benchmark(name="data", source="input", instruction="instruction")

AURORA = Benchmark(
    name="aurora",
    source="input",
    instruction="instruction",
    target="output",
    task="source",
    split="complex",
)

BENCHMARKS: Mapping[str, Benchmark] = {spec.name: spec for spec in (GENERIC, AURORA)}
