"""From scores to the rows of a table: pure functions that the table and the report share.

A failed sample is counted and enters no mean. The difference to a reference model is taken sample by sample on the
samples that both have a score for: a much tighter interval than two side by side, since both models meet the same
easy and hard samples. The paper's AVG is the plain mean of its six benchmarks, whatever their sizes; its interval comes
from resampling each benchmark by itself (`average_interval`). All functions take the scores of one metric
(`of_metric`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from baselines.results.records import GROUND_TRUTH, NO_EDIT, VIESCORE, WHOLE_SET, ScoredSample
from baselines.tables.paper import benchmarks, in_published_order, title_of
from baselines.tables.statistics import RESAMPLES, Interval, average_interval, mean_interval
from emu3.errors import UserError

SPLIT_ORDER = ("simple", "complex")
EDITOR_ORDER = {NO_EDIT: 0, GROUND_TRUTH: 2}
AVERAGE = "AVG"


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
    parts that the scores are made of. `mean_with_zeros` is the mean with failures as 0, as the published evaluation
    took it: it stands beside the mean where the published protocol is followed, and nothing is made of it.
    """

    model: str
    split: str
    n: int
    mean: float | None
    ci95: Interval | None
    failed: int
    parts: dict[str, float]
    difference: Difference | None
    mean_with_zeros: float | None = None


Group = Callable[[ScoredSample], str]
"""The name of the group that a score belongs to."""
Cell = dict[tuple[str, str], ScoredSample]
"""The scores of one model in one group, by benchmark and id."""


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


def of_metric(scores: Sequence[ScoredSample], metric: str) -> list[ScoredSample]:
    return [score for score in scores if score.metric == metric]


def metrics_of(scores: Sequence[ScoredSample]) -> list[str]:
    """Names of metrics: VIEScore first, the others as they come."""
    return sorted(dict.fromkeys(score.metric for score in scores), key=lambda metric: metric != VIESCORE)


def models_of(scores: Sequence[ScoredSample]) -> list[str]:
    """Model names: no-edit first, ground truth last, the others as they come."""
    editors = {score.model: score.editor for score in scores}
    return sorted(editors, key=lambda model: EDITOR_ORDER.get(editors[model], 1))


def groups_of(scores: Sequence[ScoredSample], group: Group) -> list[str]:
    """Group names: simple, complex, the paper's benchmarks in its order, then the others as they come."""
    names = in_published_order(list(dict.fromkeys(group(score) for score in scores)))
    return sorted(names, key=lambda name: SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER))


def summarise(
    scores: Sequence[ScoredSample],
    group: Group = by_split,
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
                    mean_with_zeros=_with_zeros(cell),
                )
            )
    return rows


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
            difference = _average_difference(pairs, reference, resamples, seed)
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
                mean_with_zeros=float(np.mean([_with_zeros(cell) for cell in of(model)])) if all(of(model)) else None,
            )
        )
    return rows


def _common_means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: float(np.mean([part[name] for part in parts])) for name in common}


def _average_difference(pairs: Sequence[np.ndarray], reference: str, resamples: int, seed: int) -> Difference | None:
    """The plain mean of the benchmarks' paired differences; None where one of them has no pair."""
    if not all(map(len, pairs)):
        return None
    mean = float(np.mean([group.mean() for group in pairs]))
    interval = average_interval(pairs, resamples=resamples, seed=seed)
    return Difference(reference, sum(map(len, pairs)), mean, interval)


def cells_of(scores: Sequence[ScoredSample], group: Group) -> dict[tuple[str, str], Cell]:
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


def _with_zeros(cell: Cell) -> float:
    return sum(values_of(cell).values()) / len(cell)


def _count(cell: Cell) -> int:
    """Samples behind a mean. A score of a whole set says itself how many they were."""
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
    """Means of the parts of the scores, each over the samples that have it."""
    scored = [score for score in cell.values() if score.value is not None and score.id != WHOLE_SET]
    names = dict.fromkeys(name for score in scored for name in score.parts)
    return {name: float(np.mean([score.parts[name] for score in scored if name in score.parts])) for name in names}
