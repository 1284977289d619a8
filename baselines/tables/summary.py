"""From scores to the rows of a table: pure functions that the table and the report share.

A failed sample is counted and enters no mean. The difference to a reference model is taken sample by sample on the
samples that both have a score for: a much tighter interval than two side by side, since both models meet the same
easy and hard samples. The paper's AVG is the plain mean of its six benchmarks, whatever their sizes; its interval comes
from resampling each benchmark by itself (`average_interval`). Several runs of a model make one row: the mean of theirs,
compared run by run. All functions take the scores of one metric (`of_metric`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from baselines.results.records import GROUND_TRUTH, NO_EDIT, VIESCORE, WHOLE_SET, ScoredSample
from baselines.tables.paper import benchmarks, in_published_order, title_of
from baselines.tables.statistics import RESAMPLES, Interval, Sampled, cluster_of, estimate, runs_of
from emu3.errors import UserError

SPLIT_ORDER = ("simple", "complex")
EDITOR_ORDER = {NO_EDIT: 0, GROUND_TRUTH: 2}
AVERAGE = "AVG"


@dataclass(frozen=True)
class Difference:
    """Mean of model minus reference (`to`) over the `n` pairs of samples that both have a score for. `nested` and
    `runs` as in `Row`."""

    to: str
    n: int
    mean: float
    ci95: Interval | None
    nested: Interval | None = None
    runs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One model on one group of samples. `mean` is None for n = 0, `ci95` for n < 2.

    `split` names the group, also where the groups are benchmarks, tasks or sources. `parts` holds the means of the
    parts that the scores are made of. `mean_with_zeros` is the mean with failures as 0, as the published evaluation
    took it: it stands beside the mean where the published protocol is followed, and nothing is made of it. `images`
    counts source images, or samples where those are not known. Of several runs of a model `runs` has each one's mean,
    `mean` is the mean of these, `ci95` covers other runs (`seed_interval`), `nested` is `nested_interval`.
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
    images: int = 0
    runs: dict[str, float] = field(default_factory=dict)
    nested: Interval | None = None


Group = Callable[[ScoredSample], str]
"""The name of the group that a score belongs to."""
SampleKey = tuple[str, str, str]
Cell = dict[SampleKey, ScoredSample]
"""The scores of one model in one group, by benchmark, id and run."""


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

    Raises `UserError` if a run of a model has two scores for one sample, and for a reference that is no model.
    """
    cells = cells_of(scores, group)
    models = models_of(scores)
    if reference is not None and reference not in models:
        raise UserError(f"no model {reference!r} to compare with; there are {', '.join(models)}")
    return [
        _row(model, name, [cells[model, name]], [cells.get((reference or "", name), {})], reference, resamples, seed)
        for name in groups_of(scores, group)
        for model in models
        if (model, name) in cells
    ]


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

    def of(model: str | None) -> list[Cell]:
        return [cells.get((model or "", name), {}) for name in names]

    return [_row(model, title, of(model), of(reference), reference, resamples, seed) for model in models_of(scores)]


def _row(
    model: str,
    split: str,
    cells: Sequence[Cell],
    others: Sequence[Cell],
    reference: str | None,
    resamples: int,
    seed: int,
) -> Row:
    """The row over one benchmark or group, or the plain mean of several. others: the reference's cells."""
    runs = runs_of([list(cell.values()) for cell in cells])
    found = estimate(list(runs.values()), resamples=resamples, seed=seed)
    difference = None
    if reference is not None and model != reference:
        pairs = _pairs(cells, others)
        about = estimate(pairs, resamples=resamples, seed=seed)
        if about.mean is not None:
            n = sum(len(part.values) for run in pairs for part in run)
            difference = Difference(reference, n, about.mean, about.ci95, about.nested, _by_run(runs, about.runs))
    n = sum(map(_count, cells))
    images = {cluster_of(score) for cell in cells for score in cell.values() if score.value is not None}
    return Row(
        model=model,
        split=split,
        n=n,
        mean=found.mean,
        ci95=found.ci95,
        failed=sum(len(cell) - len(values_of(cell)) for cell in cells),
        parts=_common_means([mean_parts(cell) for cell in cells]) if found.mean is not None else {},
        difference=difference,
        mean_with_zeros=float(np.mean([_with_zeros(cell) for cell in cells])) if all(cells) else None,
        images=len(images),
        runs=_by_run(runs, found.runs),
        nested=found.nested,
    )


def _by_run(names: Iterable[str], means: Sequence[float]) -> dict[str, float]:
    return dict(zip(names, means, strict=True)) if len(means) > 1 else {}


def _pairs(cells: Sequence[Cell], others: Sequence[Cell]) -> list[list[Sampled]]:
    """Value minus other value of the samples that both have. Runs of the same name belong together; a reference with
    one run is compared with every run; other numbers of runs are not compared at all."""
    runs, known = (
        list(dict.fromkeys(score.run for cell in some for score in cell.values())) for some in (cells, others)
    )
    if len(known) != 1 and set(runs) != set(known):
        return []
    return [
        [
            _differences(cell, other, run, run if len(known) > 1 else known[0])
            for cell, other in zip(cells, others, strict=True)
        ]
        for run in runs
    ]


def _differences(cell: Cell, other: Cell, run: str, other_run: str) -> Sampled:
    values = values_of(other)
    pairs = [
        (score, score.value - values[*key[:2], other_run])
        for key, score in cell.items()
        if score.run == run and score.value is not None and (*key[:2], other_run) in values
    ]
    return Sampled(np.array([value for _, value in pairs]), [cluster_of(score) for score, _ in pairs])


def _common_means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: float(np.mean([part[name] for part in parts])) for name in common}


def cells_of(scores: Sequence[ScoredSample], group: Group) -> dict[tuple[str, str], Cell]:
    """Scores by model and group name, then by benchmark, id and run. Raises `UserError` for a sample with two scores of
    one run."""
    cells: dict[tuple[str, str], Cell] = {}
    for score in scores:
        cell = cells.setdefault((score.model, group(score)), {})
        if (key := (score.benchmark, score.id, score.run)) in cell:
            raise UserError(
                f"model {score.model!r} has two scores for sample {score.id!r} of {score.benchmark!r}: take one of "
                "them; runs of one model are told apart by the editor's seed, or its weights"
            )
        cell[key] = score
    return cells


def values_of(cell: Cell) -> dict[SampleKey, float]:
    """The values by benchmark, id and run; failures have none."""
    return {key: score.value for key, score in cell.items() if score.value is not None}


def _with_zeros(cell: Cell) -> float:
    return sum(values_of(cell).values()) / len(cell)


def _count(cell: Cell) -> int:
    """Samples behind a mean. A score of a whole set says itself how many they were."""
    return sum(int(cell[key].parts["n"]) if key[1] == WHOLE_SET else 1 for key in values_of(cell))


def mean_parts(cell: Cell) -> dict[str, float]:
    """Means of the parts of the scores, each over the samples that have it."""
    scored = [score for score in cell.values() if score.value is not None and score.id != WHOLE_SET]
    names = dict.fromkeys(name for score in scored for name in score.parts)
    return {name: float(np.mean([score.parts[name] for score in scored if name in score.parts])) for name in names}
