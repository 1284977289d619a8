"""From scores to the rows of a table: pure functions that the table and the report share.

A failed sample is counted and enters no mean. The difference to a reference model is taken sample by sample on the
samples that both have a score for: a much tighter interval than two side by side, since both models meet the same
easy and hard samples. All functions take the scores of one metric (`of_metric`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from baselines.editors.options import GROUND_TRUTH, NO_EDIT
from baselines.results.records import VIESCORE, WHOLE_SET, ScoredSample
from baselines.tables.bootstrap import RESAMPLES, mean_interval
from baselines.tables.cells import Interval
from baselines.tables.published import in_published_order, title_of
from emu3.errors import UserError

SPLIT_ORDER = ("simple", "complex")
EDITOR_ORDER = {NO_EDIT: 0, GROUND_TRUTH: 2}


@dataclass(frozen=True)
class Difference:
    """Mean of model minus reference (`to`) over the `n` samples that both have a score for."""

    to: str
    n: int
    mean: float
    ci95: Interval | None


@dataclass(frozen=True)
class Row:
    """One model on one group of samples. `mean` is None for n = 0, `ci95` for n < 2.

    `split` names the group, also where the groups are benchmarks, tasks or sources. `parts` holds the means of the
    figures behind the score.
    """

    model: str
    split: str
    n: int
    mean: float | None
    ci95: Interval | None
    failed: int
    parts: dict[str, float]
    difference: Difference | None


Cell = dict[tuple[str, str], ScoredSample]


def by_split(score: ScoredSample) -> str:
    return score.split


def by_task(score: ScoredSample) -> str:
    return score.task


def by_benchmark(score: ScoredSample) -> str:
    return title_of(score.benchmark)


def by_source(score: ScoredSample) -> str:
    return score.source_set


def by_benchmark_task(score: ScoredSample) -> str:
    return f"{by_benchmark(score)}: {score.task}"


def by_benchmark_source(score: ScoredSample) -> str:
    return f"{by_benchmark(score)}: {score.source_set}"


def of_metric(scores: Sequence[ScoredSample], metric: str) -> list[ScoredSample]:
    return [score for score in scores if score.metric == metric]


def metrics_of(scores: Sequence[ScoredSample]) -> list[str]:
    """Names of metrics: VIEScore first, the others as they come."""
    return sorted(dict.fromkeys(score.metric for score in scores), key=lambda metric: metric != VIESCORE)


def models_of(scores: Sequence[ScoredSample]) -> list[str]:
    """Model names: no-edit first, ground truth last, the others as they come."""
    editors = {score.model: score.editor for score in scores}
    return sorted(editors, key=lambda model: EDITOR_ORDER.get(editors[model], 1))


def groups_of(scores: Sequence[ScoredSample], group: Callable[[ScoredSample], str]) -> list[str]:
    """Group names: simple, complex, the paper's benchmarks in its order, then the others as they come."""
    names = in_published_order(list(dict.fromkeys(group(score) for score in scores)))
    return sorted(names, key=lambda name: SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER))


def summarise(
    scores: Sequence[ScoredSample],
    group: Callable[[ScoredSample], str] = by_split,
    *,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """One row per model and group, models within groups in the order of `models_of`.

    Raises `UserError` if a model has two scores for one sample, and for a reference that is no model.
    """
    cells = cells_of(scores, group)
    models = models_of(scores)
    if reference is not None and reference not in models:
        raise UserError(f"no model {reference!r} to compare with; there are {', '.join(models)}")

    rows = []
    for name in groups_of(scores, group):
        for model in models:
            if (model, name) not in cells:
                continue
            cell = cells[model, name]
            values = values_of(cell)
            numbers = np.array(list(values.values()))
            difference = None
            if reference is not None and model != reference:
                difference = _difference(
                    values, values_of(cells.get((reference, name), {})), reference, resamples, seed
                )
            rows.append(
                Row(
                    model=model,
                    split=name,
                    n=_count(cell),
                    mean=float(numbers.mean()) if len(values) else None,
                    ci95=mean_interval(numbers, resamples=resamples, seed=seed),
                    failed=len(cell) - len(values),
                    parts=mean_parts(cell),
                    difference=difference,
                )
            )
    return rows


def cells_of(scores: Sequence[ScoredSample], group: Callable[[ScoredSample], str]) -> dict[tuple[str, str], Cell]:
    """Scores by model and group name, then by benchmark and id. Raises `UserError` for a sample with two scores."""
    cells: dict[tuple[str, str], Cell] = {}
    for score in scores:
        cell = cells.setdefault((score.model, group(score)), {})
        if (score.benchmark, score.id) in cell:
            raise UserError(f"model {score.model!r} has two scores for sample {score.id!r} of {score.benchmark!r}")
        cell[score.benchmark, score.id] = score
    return cells


def values_of(cell: Cell) -> dict[tuple[str, str], float]:
    """The values by benchmark and id; failures have none."""
    return {key: score.value for key, score in cell.items() if score.value is not None}


def _count(cell: Cell) -> int:
    """Samples behind a figure. That of a whole set is one figure, which says itself how many they were."""
    return sum(int(cell[key].parts["n"]) if key[1] == WHOLE_SET else 1 for key in values_of(cell))


def _difference(
    values: dict[tuple[str, str], float],
    others: dict[tuple[str, str], float],
    reference: str,
    resamples: int,
    seed: int,
) -> Difference | None:
    differences = pairs_of(values, others)
    if not len(differences):
        return None
    interval = mean_interval(differences, resamples=resamples, seed=seed)
    return Difference(reference, len(differences), float(differences.mean()), interval)


def pairs_of(values: dict[tuple[str, str], float], others: dict[tuple[str, str], float]) -> np.ndarray:
    """float (pairs,): value minus other value of the samples that have both."""
    return np.array([value - others[key] for key, value in values.items() if key in others])


def mean_parts(cell: Cell) -> dict[str, float]:
    """Means of the figures behind the scores, each over the samples that have it."""
    scored = [score for score in cell.values() if score.value is not None and score.id != WHOLE_SET]
    names = dict.fromkeys(name for score in scored for name in score.parts)
    return {name: float(np.mean([score.parts[name] for score in scored if name in score.parts])) for name in names}
