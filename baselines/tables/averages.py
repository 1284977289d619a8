"""The main table of several benchmarks, and its average.

The paper's AVG is the plain mean of its six benchmarks, whatever their sizes. Its interval comes from resampling each
benchmark by itself (`baselines.tables.bootstrap.average_interval`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from baselines.results.records import WHOLE_SET, ScoredSample
from baselines.tables.bootstrap import RESAMPLES, average_interval
from baselines.tables.published import benchmarks
from baselines.tables.summary import (
    Cell,
    Difference,
    Row,
    by_benchmark,
    by_benchmark_source,
    by_benchmark_task,
    by_source,
    by_split,
    by_task,
    cells_of,
    groups_of,
    mean_parts,
    models_of,
    pairs_of,
    summarise,
    values_of,
)

Group = Callable[[ScoredSample], str]

AVERAGE = "AVG"


def main_group(scores: Sequence[ScoredSample]) -> Group:
    """What stands side by side: the benchmarks where there are several, else the splits of the one."""
    return by_benchmark if _several(scores) else by_split


def task_group(scores: Sequence[ScoredSample]) -> Group:
    """Tasks; those of several benchmarks are told apart though they may be called alike."""
    return by_benchmark_task if _several(scores) else by_task


def source_group(scores: Sequence[ScoredSample]) -> Group:
    """Sources, as tasks."""
    return by_benchmark_source if _several(scores) else by_source


def _several(scores: Sequence[ScoredSample]) -> bool:
    return len({by_benchmark(score) for score in scores}) > 1


def main_rows(
    scores: Sequence[ScoredSample], *, reference: str | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> list[Row]:
    """The rows of the main table; several benchmarks end with their average. Arguments and errors as `summarise`."""
    group = main_group(scores)
    rows = summarise(scores, group, reference=reference, resamples=resamples, seed=seed)
    if group is by_benchmark and not any(score.id == WHOLE_SET for score in scores):
        rows += average_rows(scores, reference=reference, resamples=resamples, seed=seed)
    return rows


def average_title(names: Sequence[str]) -> tuple[str, list[str]]:
    """Title and members of the average of some benchmarks: AVG over the paper's six where all are there, else over
    what there is, which the title then says."""
    six = list(benchmarks().values())
    return (AVERAGE, six) if set(six) <= set(names) else (f"{AVERAGE} of {len(names)}", list(names))


def average_rows(
    scores: Sequence[ScoredSample], *, reference: str | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> list[Row]:
    """A row per model with the plain mean of its benchmarks' means, unknown where one of them has no score: a mean of
    five is not comparable with a mean of six."""
    title, names = average_title(groups_of(scores, by_benchmark))
    cells = cells_of(scores, by_benchmark)

    def of(model: str) -> list[Cell]:
        return [cells.get((model, name), {}) for name in names]

    rows = []
    for model in models_of(scores):
        values = [values_of(cell) for cell in of(model)]
        parts = [mean_parts(cell) for cell in of(model)]
        numbers = [np.array(list(group.values())) for group in values]
        n, whole = sum(map(len, values)), all(values)
        difference = None
        if reference is not None and model != reference:
            pairs = [pairs_of(one, values_of(other)) for one, other in zip(values, of(reference), strict=True)]
            difference = _difference(pairs, reference, resamples, seed)
        rows.append(
            Row(
                model=model,
                split=title,
                n=n,
                mean=float(np.mean([group.mean() for group in numbers])) if whole else None,
                ci95=average_interval(numbers, resamples=resamples, seed=seed) if whole else None,
                failed=sum(map(len, of(model))) - n,
                parts=_common_means(parts) if whole else {},
                difference=difference,
            )
        )
    return rows


def _common_means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: float(np.mean([part[name] for part in parts])) for name in common}


def _difference(pairs: Sequence[np.ndarray], reference: str, resamples: int, seed: int) -> Difference | None:
    """The plain mean of the benchmarks' paired differences; None where one of them has no pair."""
    if not all(map(len, pairs)):
        return None
    mean = float(np.mean([group.mean() for group in pairs]))
    interval = average_interval(pairs, resamples=resamples, seed=seed)
    return Difference(reference, sum(map(len, pairs)), mean, interval)
