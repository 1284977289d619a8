"""A benchmark of one's own: where its rows are, what its columns are called, which rows count.

    python -m baselines.evaluate --editor no-edit --benchmark docs/templates/benchmark.py:GARDEN \
        --data garden.parquet --output runs/garden

An instance of `Benchmark` (baselines/benchmarks/spec.py has all fields). With `hub` and `files` it is fetched where
`--data` is left out. Its rules are recorded with the predictions, so that a change of them is another run.
"""

from __future__ import annotations

from baselines.benchmarks.spec import Benchmark, Subset

GARDEN = Benchmark(
    name="garden",
    title="Garden",
    source="before",
    target="after",
    instruction="request",
    task="kind",
    where=("kind", "plants"),  # of all rows those
    subset=Subset(seed=42, rows=500),  # of these 500, or all
    split="simple",
)
