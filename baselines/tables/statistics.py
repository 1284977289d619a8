"""How sure a number is, and how two series of them go together: the percentile bootstrap (Efron, 1979), correlations,
and the published file of means and deviations.

The mean of a few hundred scores between 0 and 10 with lumps at both ends is far enough from normal that an interval
from the data's own resamples is the honest one. Each of the resamples draws n of the n values with replacement; the
interval runs between the percentiles of their means. Several edits of one image are drawn together, as one cluster
(Davison and Hinkley, 1997, section 3.8): apart, they would count as more evidence than they are. Values that are all
equal have no interval, since resampling them only repeats them.

Such an interval is about one checkpoint on other samples. How far a recipe's number would move with another training
seed is another question: `seed_interval` answers it by Student's t over the seeds' means, and `nested_interval` draws
seeds and, within them, samples.

Pearson asks whether two series lie on a line, Spearman and Kendall (tau-b, which allows for ties: scores are coarse)
whether they rank alike. Coefficients are scipy's. A series without any spread has no correlation with anything;
resamples in which that happens are left out of the interval.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from baselines.results.records import ScoredSample

Interval = tuple[float, float]
Level = Literal["pooled", "within", "system"]

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
    values: np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval | None:
    """Percentile interval of the mean.

    Args:
        values: float (n,), finite.
        clusters: what each value is drawn together with, such as its source image; None draws each by itself.
        resamples: number of resamples.
        seed: the same values and seed give the same interval, whatever else is computed beside it.
        level: covered share, between 0 and 1.

    Returns:
        (low, high) in the unit of the values; None for fewer than two clusters and for equal values, of which
        resampling says nothing.

    Raises:
        ValueError: a value is not finite. A failed sample has no value and must not come here.
    """
    values = _checked(values)
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    sums, counts = _by_cluster(values, clusters)
    if len(sums) < 2:
        return None
    return percentiles(_resampled_means(sums, counts, resamples, np.random.default_rng(seed)), level)


def average_interval(
    groups: Sequence[np.ndarray],
    *,
    clusters: Sequence[Sequence[Hashable]] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval | None:
    """Percentile interval of the plain mean of several groups' means, the AVG column of a table.

    Each group is resampled by itself and in its own stream, since the benchmarks are fixed and their samples are not:
    the number of a benchmark's samples does not weigh. Arguments (clusters: of each group) and errors as for
    `mean_interval`; None if a group has fewer than two clusters, or all groups have equal values.
    """
    checked = [_checked(values) for values in groups]
    if not any(len(values) and np.ptp(values) for values in checked):
        return None
    parts = [_by_cluster(values, None if clusters is None else clusters[place]) for place, values in enumerate(checked)]
    if any(len(sums) < 2 for sums, _ in parts):
        return None
    means = [
        _resampled_means(sums, counts, resamples, np.random.default_rng((seed, place)))
        for place, (sums, counts) in enumerate(parts)
    ]
    return percentiles(np.mean(means, axis=0), level)


def seed_interval(means: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t interval of what the recipe gives on average, from the mean of each training seed; None for fewer
    than two. With three seeds it is 2.5 times as wide as the normal one: that is what three seeds say."""
    from scipy import stats

    values = _checked(np.array(means))
    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def nested_interval(
    seeds: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval | None:
    """Percentile interval of the mean over training seeds of each one's mean over samples: resamples draw seeds, and
    samples within each seed drawn (the hierarchical bootstrap). With few seeds it is too narrow, since a resample of
    three seeds often has one of them twice: `seed_interval` stands beside it. seeds: float (n,) each; None for fewer
    than two."""
    checked = [_checked(values) for values in seeds]
    if len(checked) < 2 or any(not len(values) for values in checked):
        return None
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(checked), size=(resamples, len(checked)))
    # A mean of seed s for each time that s was drawn, each from samples of its own.
    means = np.empty(drawn.shape)
    for number, values in enumerate(checked):
        here = drawn == number
        means[here] = _resampled_means(values, np.ones(len(values)), int(here.sum()), random)
    return percentiles(means.mean(axis=1), level)


def failure_bounds(mean: float, n: int, failed: int, low: float = 0.0, high: float = 10.0) -> Interval:
    """The mean if every failed sample had the lowest score, and if every one had the highest: failures need not be
    missing at random, and the truth lies between. mean: of the n scored samples; n above 0."""
    whole = n + failed
    return (mean * n + failed * low) / whole, (mean * n + failed * high) / whole


def percentiles(statistics: np.ndarray, level: float = LEVEL) -> Interval:
    """The bounds between which the middle `level` of some resampled statistics lies."""
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("the bootstrap takes a flat array of finite numbers")
    return values


def _by_cluster(values: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """float (clusters,) twice: the sum of each cluster's values and their number, in order of appearance."""
    if clusters is None:
        return values, np.ones(len(values))
    places: dict[Hashable, int] = {}
    place = [places.setdefault(name, len(places)) for name in clusters]
    return np.bincount(place, values, len(places)), np.bincount(place, minlength=len(places)).astype(np.float64)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """float (resamples,); drawn in portions, so that the memory does not grow with the number of clusters."""
    n = len(sums)
    rows = max(1, _INDICES_AT_ONCE // n)
    means = [np.empty(0)]
    for start in range(0, resamples, rows):
        drawn = random.integers(0, n, size=(min(rows, resamples - start), n))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


@dataclass(frozen=True)
class Correlation:
    """-1 to 1, None where it is undefined; `ci95` is None with it."""

    name: str
    value: float | None
    ci95: Interval | None


def correlations(
    one: np.ndarray,
    other: np.ndarray,
    *,
    models: Sequence[str] | None = None,
    level: Level = "pooled",
    clusters: Sequence[Hashable] | None = None,
    names: Sequence[str] = tuple(COEFFICIENTS),
    resamples: int = CORRELATION_RESAMPLES,
    seed: int = 0,
) -> list[Correlation]:
    """Some `COEFFICIENTS` of two float (n,) arrays; undefined for n < 3.

    level: `pooled` takes all pairs alike; of several models it is high already where both sides know which model is
    better. `within` is the mean of each model's own coefficient, `system` that of the models' means. models: the model
    of each pair, for the latter two. clusters: as for `mean_interval`.
    """
    # Imported here: it comes with the extra `eval`, and means need nothing of it.
    from scipy import stats

    model_N = np.array(models if models is not None else [""] * len(one))
    draws = _draws(len(one), clusters, resamples, seed)
    found = []
    with warnings.catch_warnings():
        # A resample may be constant but for rounding, of which scipy warns.
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        for name in names:
            coefficient = getattr(stats, COEFFICIENTS[name])
            value = _at(level, coefficient, one, other, model_N)
            resampled = (
                []
                if value is None
                else [_at(level, coefficient, one[draw], other[draw], model_N[draw]) for draw in draws]
            )
            known = np.array([number for number in resampled if number is not None])
            found.append(Correlation(name, value, percentiles(known) if len(known) else None))
    return found


def _at(
    level: Level,
    coefficient: Callable[[np.ndarray, np.ndarray], Any],
    one: np.ndarray,
    other: np.ndarray,
    models: np.ndarray,
) -> float | None:
    if level == "pooled":
        return _correlation(coefficient, one, other)
    own = [models == name for name in np.unique(models)]
    if level == "system":
        means = np.array([[one[rows].mean(), other[rows].mean()] for rows in own]).reshape(-1, 2)
        return _correlation(coefficient, means[:, 0], means[:, 1])
    values = [_correlation(coefficient, one[rows], other[rows]) for rows in own]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _draws(n: int, clusters: Sequence[Hashable] | None, resamples: int, seed: int) -> list[np.ndarray]:
    """Indices of each resample; whole clusters, so their number varies a little."""
    members: dict[Hashable, list[int]] = {}
    for index in range(n):
        members.setdefault(index if clusters is None else clusters[index], []).append(index)
    groups = [np.array(group) for group in members.values()]
    drawn = np.random.default_rng(seed).integers(0, max(1, len(groups)), size=(resamples, len(groups)))
    return list(drawn) if len(groups) == n else [np.concatenate([groups[place] for place in row]) for row in drawn]


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

    `{"VIE_SC": {"mean", "std"}, ..., "n", "failed", "per_source": {source: ...}, "per_task_type": {task: ...}}`: its
    seven statistics under their names, each with mean and standard deviation over the scored samples (ddof 0), over all
    of them, per source and per task type. Unlike there, failed samples enter none and are counted.
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
        **{
            name: {"mean": float(np.mean(numbers)), "std": float(np.std(numbers))}
            if scored
            else dict.fromkeys(("mean", "std"))
            for name, numbers in values.items()
        },
        "n": len(scored),
        "failed": len(scores) - len(scored),
    }
