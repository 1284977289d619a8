"""How sure a number is, and how two series of them go together: the percentile bootstrap (Efron, 1979), correlations,
and the published file of means and deviations.

The mean of a few hundred scores between 0 and 10 with lumps at both ends is far enough from normal that an interval
from the data's own resamples is the honest one. Each of the resamples draws n of the n values with replacement; the
interval runs between the percentiles of their means. Samples are taken as independent: several edits of one image
in one benchmark make the true interval a little wider than the one computed here.

Pearson asks whether two series lie on a line, Spearman and Kendall (tau-b, which allows for ties: scores are coarse)
whether they rank alike. Coefficients are scipy's. A series without any spread has no correlation with anything;
resamples in which that happens are left out of the interval.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.results.records import ScoredSample

Interval = tuple[float, float]

RESAMPLES = 10_000
CORRELATION_RESAMPLES = 2_000
"""Fewer than for means: Kendall's coefficient takes longer."""
LEVEL = 0.95
_INDICES_AT_ONCE = 1 << 22

COEFFICIENTS = {"pearson": "pearsonr", "spearman": "spearmanr", "kendall": "kendalltau"}
"""Correlations by their names, and what `scipy.stats` calls them."""

PUBLISHED_STATISTICS = {
    "VIE_SC": "sc",
    "VIE_PQ": "pq",
    "VIE_ALL": None,
    "EDIT_SUCCESS": "edit_success",
    "OVEREDIT": "overedit",
    "LOOKS_NATURAL": "naturalness",
    "NO_ARTIFACT": "no_artifacts",
}
"""Published name of each statistic, and the part of a VIEScore that it is of; None is the score itself."""


def add_resampling_flags(parser: argparse.ArgumentParser, resamples: int = RESAMPLES) -> None:
    """`--resamples` and `--seed` of the bootstrap."""
    parser.add_argument("--resamples", type=int, default=resamples, help=f"of the bootstrap (default: {resamples})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling")


def mean_interval(
    values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval | None:
    """Percentile interval of the mean.

    Args:
        values: float (n,), finite.
        resamples: number of resamples.
        seed: the same values and seed give the same interval, whatever else is computed beside it.
        level: covered share, between 0 and 1.

    Returns:
        (low, high) in the unit of the values; None for n < 2, where resampling says nothing.

    Raises:
        ValueError: a value is not finite. A failed sample has no value and must not come here.
    """
    values = _checked(values)
    if len(values) < 2:
        return None
    return percentiles(_resampled_means(values, resamples, np.random.default_rng(seed)), level)


def average_interval(
    groups: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval | None:
    """Percentile interval of the plain mean of several groups' means, the AVG column of a table.

    Each group is resampled by itself and in its own stream, since the benchmarks are fixed and their samples are not:
    the number of a benchmark's samples does not weigh. Arguments and errors as for `mean_interval`; None if a group
    has fewer than two values.
    """
    checked = [_checked(values) for values in groups]
    if not checked or any(len(values) < 2 for values in checked):
        return None
    means = [
        _resampled_means(values, resamples, np.random.default_rng((seed, place)))
        for place, values in enumerate(checked)
    ]
    return percentiles(np.mean(means, axis=0), level)


def percentiles(statistics: np.ndarray, level: float = LEVEL) -> Interval:
    """The bounds between which the middle `level` of some resampled statistics lies."""
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("the bootstrap takes a flat array of finite numbers")
    return values


def _resampled_means(values: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """float (resamples,); drawn in portions, so that the memory does not grow with the number of values."""
    n = len(values)
    rows = max(1, _INDICES_AT_ONCE // n)
    return np.concatenate(
        [
            values[random.integers(0, n, size=(min(rows, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )


@dataclass(frozen=True)
class Correlation:
    """-1 to 1, None where it is undefined; `ci95` is None with it."""

    name: str
    value: float | None
    ci95: Interval | None


def correlations(
    one: np.ndarray, other: np.ndarray, *, resamples: int = CORRELATION_RESAMPLES, seed: int = 0
) -> list[Correlation]:
    """All `COEFFICIENTS` of two float (n,) arrays; undefined for n < 3."""
    # Imported here: it comes with the extra `eval`, and means need nothing of it.
    from scipy import stats

    draws = np.random.default_rng(seed).integers(0, max(1, len(one)), size=(resamples, len(one)))
    found = []
    with warnings.catch_warnings():
        # A resample may be constant but for rounding, of which scipy warns.
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        for name, function in COEFFICIENTS.items():
            coefficient = getattr(stats, function)
            value = _correlation(coefficient, one, other)
            resampled = [] if value is None else [_correlation(coefficient, one[draw], other[draw]) for draw in draws]
            known = np.array([number for number in resampled if number is not None])
            found.append(Correlation(name, value, percentiles(known) if len(known) else None))
    return found


def _correlation(
    coefficient: Callable[[np.ndarray, np.ndarray], Any], one: np.ndarray, other: np.ndarray
) -> float | None:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(coefficient(one, other).statistic)


def stats_name(model: str) -> str:
    """The name of a model's file of statistics, of which characters that a file system may refuse become `_`."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', model)}_viescore_stats.json"


def viescore_stats(scores: Sequence[ScoredSample]) -> dict[str, Any]:
    """What the published evaluation writes beside its scores as `NAME_viescore_stats.json`, of one predictions file.

    `{"n", "failed", "mean": {...}, "std": {...}, "per_source": {source: ...}, "per_task_type": {task: ...}}`: its seven
    statistics under their names, each with mean and standard deviation over the scored samples (ddof 0), over all of
    them, per source and per task type. Unlike there, failed samples enter none and are counted.
    """
    return {
        **_mean_and_std(scores),
        "per_source": _per(scores, lambda score: score.source_set),
        "per_task_type": _per(scores, lambda score: score.task),
    }


def _per(scores: Sequence[ScoredSample], group: Callable[[ScoredSample], str]) -> dict[str, Any]:
    names = dict.fromkeys(group(score) for score in scores)
    return {name: _mean_and_std([score for score in scores if group(score) == name]) for name in names if name}


def _mean_and_std(scores: Sequence[ScoredSample]) -> dict[str, Any]:
    """Those over no scored sample are null."""
    scored = [(score.value, score.parts) for score in scores if score.value is not None]
    values = {
        name: [value if part is None else parts[part] for value, parts in scored]
        for name, part in PUBLISHED_STATISTICS.items()
    }
    return {
        "n": len(scored),
        "failed": len(scores) - len(scored),
        "mean": {name: float(np.mean(numbers)) if scored else None for name, numbers in values.items()},
        "std": {name: float(np.std(numbers)) if scored else None for name, numbers in values.items()},
    }
