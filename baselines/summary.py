"""From scores to the rows of a table: pure functions that the table and the report share.

A failed sample is counted and enters no mean. The difference to a reference model is taken sample by sample on the
samples that both have a score for: a much tighter interval than two side by side, since both models meet the same
easy and hard samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from baselines.bootstrap import RESAMPLES, mean_interval
from baselines.editors.names import GROUND_TRUTH, NO_EDIT
from baselines.records import ScoredSample
from emu3.errors import UserError

Interval = tuple[float, float]

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

    `split` names the group, also where the groups are tasks. `parts` holds the means of the figures behind the score.
    """

    model: str
    split: str
    n: int
    mean: float | None
    ci95: Interval | None
    failed: int
    parts: dict[str, float]
    difference: Difference | None


def by_split(score: ScoredSample) -> str:
    return score.split


def by_task(score: ScoredSample) -> str:
    return score.task


def models_of(scores: Sequence[ScoredSample]) -> list[str]:
    """Model names: no-edit first, ground truth last, the others as they come."""
    editors = {score.model: score.editor for score in scores}
    return sorted(editors, key=lambda model: EDITOR_ORDER.get(editors[model], 1))


def groups_of(scores: Sequence[ScoredSample], group: Callable[[ScoredSample], str]) -> list[str]:
    """Group names: simple, complex, then the others as they come."""
    names = dict.fromkeys(group(score) for score in scores)
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
    cells: dict[tuple[str, str], dict[tuple[str, str], ScoredSample]] = {}
    for score in scores:
        cell = cells.setdefault((score.model, group(score)), {})
        if (score.benchmark, score.id) in cell:
            raise UserError(f"model {score.model!r} has two scores for sample {score.id!r} of {score.benchmark!r}")
        cell[score.benchmark, score.id] = score
    models = models_of(scores)
    if reference is not None and reference not in models:
        raise UserError(f"no model {reference!r} to compare with; there are {', '.join(models)}")

    rows = []
    for name in groups_of(scores, group):
        for model in models:
            if (model, name) not in cells:
                continue
            cell = cells[model, name]
            values = _values(cell)
            numbers = np.array(list(values.values()))
            difference = None
            if reference is not None and model != reference:
                difference = _difference(values, _values(cells.get((reference, name), {})), reference, resamples, seed)
            rows.append(
                Row(
                    model=model,
                    split=name,
                    n=len(values),
                    mean=float(numbers.mean()) if len(values) else None,
                    ci95=mean_interval(numbers, resamples=resamples, seed=seed),
                    failed=len(cell) - len(values),
                    parts=_mean_parts(cell),
                    difference=difference,
                )
            )
    return rows


def _values(cell: dict[tuple[str, str], ScoredSample]) -> dict[tuple[str, str], float]:
    return {key: score.value for key, score in cell.items() if score.value is not None}


def _difference(
    values: dict[tuple[str, str], float],
    others: dict[tuple[str, str], float],
    reference: str,
    resamples: int,
    seed: int,
) -> Difference | None:
    differences = np.array([value - others[key] for key, value in values.items() if key in others])
    if not len(differences):
        return None
    interval = mean_interval(differences, resamples=resamples, seed=seed)
    return Difference(reference, len(differences), float(differences.mean()), interval)


def _mean_parts(cell: dict[tuple[str, str], ScoredSample]) -> dict[str, float]:
    scored = [score for score in cell.values() if score.value is not None]
    names = dict.fromkeys(name for score in scored for name in score.parts)
    return {name: float(np.mean([score.parts[name] for score in scored if name in score.parts])) for name in names}
