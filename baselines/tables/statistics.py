"""How sure a number is: the percentile bootstrap (Efron, 1979), Student's t over runs, and the published file of means
and deviations.

The mean of a few hundred scores between 0 and 10 with lumps at both ends is far enough from normal that an interval
from the data's own resamples is the honest one. Each of the resamples draws n of the n values with replacement; the
interval runs between the percentiles of their means. Several edits of one image are drawn together, as one cluster
(Davison and Hinkley, 1997, section 3.8): apart, they would count as more evidence than they are. Values that are all
equal have no interval, since resampling them only repeats them.

Such an interval is about one checkpoint on other samples. How far a recipe's number would move with another seed is
another question: `seed_interval` answers it by Student's t over the means of several runs, and `nested_interval` draws
runs and samples. `estimate` takes whichever goes with the runs that are there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.results.records import ScoredSample
from emu3.settings import SEED, number_in

Interval = tuple[float, float]

RESAMPLES = 10_000
LEVEL = 0.95
_INDICES_AT_ONCE = 1 << 22
_NOTHING = 1e-18
"""Below this a variance is a rounding."""

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
    parser.add_argument(
        "--resamples",
        type=number_in(int, least=1, most=10**6),
        default=resamples,
        help=f"of the bootstrap (default: {resamples})",
    )
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the resampling")


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


@dataclass(frozen=True)
class Sampled:
    """Values of one run on one benchmark, float (n,), and what each is drawn together with: its source image."""

    values: np.ndarray
    clusters: Sequence[Hashable]


Runs = Sequence[Sequence[Sampled]]
"""For each run of a recipe its benchmarks, the same ones in the same order."""


def cluster_of(score: ScoredSample) -> tuple[str, ...]:
    """What a sample is drawn together with: all edits of its source image, or only itself where that is not known."""
    return (score.benchmark, score.source_id) if score.source_id else (score.benchmark, "", score.id)


def runs_of(
    benchmarks: Sequence[Sequence[ScoredSample]],
    value: Callable[[ScoredSample], float | None] = lambda score: score.value,
) -> dict[str, list[Sampled]]:
    """The values of some benchmarks' scores by run and, within each run, by benchmark; a failure has none."""
    runs = dict.fromkeys(score.run for scores in benchmarks for score in scores)
    return {run: [_sampled([one for one in scores if one.run == run], value) for scores in benchmarks] for run in runs}


def _sampled(scores: Sequence[ScoredSample], value: Callable[[ScoredSample], float | None]) -> Sampled:
    kept = [(number, cluster_of(score)) for score in scores if (number := value(score)) is not None]
    return Sampled(np.array([number for number, _ in kept], dtype=np.float64), [cluster for _, cluster in kept])


@dataclass(frozen=True)
class Estimate:
    """Mean over runs of the mean over benchmarks of the mean over samples; None where one of them has no value.

    ci95: of one run by the bootstrap over source images, of several `seed_interval`. nested: `nested_interval` of
    several. runs: the mean of each.
    """

    mean: float | None = None
    ci95: Interval | None = None
    nested: Interval | None = None
    runs: tuple[float, ...] = ()


def estimate(runs: Runs, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of some runs with the intervals that go with their number."""
    if not runs or not all(group and all(len(part.values) for part in group) for group in runs):
        return Estimate()
    means = tuple(_mean(run) for run in runs)
    if len(runs) > 1:
        nested = nested_interval(runs, resamples=resamples, seed=seed)
        return Estimate(float(np.mean(means)), seed_interval(runs), nested, means)
    [run] = runs
    if len(run) == 1:
        interval = mean_interval(run[0].values, clusters=run[0].clusters, resamples=resamples, seed=seed)
    else:
        values, clusters = [part.values for part in run], [part.clusters for part in run]
        interval = average_interval(values, clusters=clusters, resamples=resamples, seed=seed)
    return Estimate(means[0], interval, None, means)


def seed_interval(runs: Runs, level: float = LEVEL) -> Interval | None:
    """Student's t interval of what the recipe gives on average on other samples, from S >= 2 runs with seeds of their
    own; None for fewer, and where all is equal. With three runs that differ it is up to 2.2 times as wide as the
    normal one: that is what three runs say.

    The variance of the mean is that between the runs' means over S, plus the part that runs share: the same source
    images are easy or hard in every run, which the runs' means do not show. That part is, summed over images, the
    covariance of the runs' means times S / (S - 1); it is none where each run has images of its own, and with runs
    that are all alike it is the whole. Degrees of freedom: Welch and Satterthwaite's.
    """
    from scipy import stats

    if len(runs) < 2 or not all(len(part.values) for run in runs for part in run):
        return None
    count = len(runs)
    means = np.array([_mean(run) for run in runs])
    between, shared, images = float(means.var(ddof=1)) / count, 0.0, 0
    for sums_S_C, counts_S_C in _by_benchmark(runs):
        sizes_S_1 = counts_S_C.sum(axis=1, keepdims=True)
        centred_S_C = sums_S_C - counts_S_C * sums_S_C.sum(axis=1, keepdims=True) / sizes_S_1
        influence_S_C = centred_S_C / sizes_S_1 / count / len(runs[0])
        n = sums_S_C.shape[1]
        covariance = float((influence_S_C.sum(axis=0) ** 2 - (influence_S_C**2).sum(axis=0)).sum())
        shared += covariance * count / (count - 1) * n / max(1, n - 1)
        images += n - 1
    shared = max(0.0, shared)
    variance = between + shared
    if variance < _NOTHING:
        return None
    freedom = variance**2 / (between**2 / (count - 1) + shared**2 / max(1, images))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * variance**0.5
    return float(means.mean()) - half, float(means.mean()) + half


def nested_interval(runs: Runs, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Interval | None:
    """Percentile interval of the same mean by the hierarchical bootstrap: each resample draws runs, and source images
    for all of them at once, since an image that several runs have is one image (Owen, 2007, "The pigeonhole
    bootstrap"). With few runs it is too narrow, since a resample of three often has one of them twice: `seed_interval`
    is the one to believe. None for fewer than two runs."""
    if len(runs) < 2 or not all(len(part.values) for run in runs for part in run):
        return None
    random = np.random.default_rng(seed)
    means_R_S = np.zeros((resamples, len(runs)))
    for sums_S_C, counts_S_C in _by_benchmark(runs):
        n = sums_S_C.shape[1]
        rows = max(1, _INDICES_AT_ONCE // n)
        for start in range(0, resamples, rows):
            part = slice(start, min(start + rows, resamples))
            drawn_R_C = random.integers(0, n, size=(part.stop - start, n)) + n * np.arange(part.stop - start)[:, None]
            times_R_C = np.bincount(drawn_R_C.ravel(), minlength=drawn_R_C.size).reshape(-1, n)
            # A run of few images may be left without any of them.
            drawn_R_S = np.maximum(times_R_C @ counts_S_C.T, _NOTHING)
            means_R_S[part] += times_R_C @ sums_S_C.T / drawn_R_S / len(runs[0])
    chosen = random.integers(0, len(runs), size=means_R_S.shape)
    found = percentiles(np.take_along_axis(means_R_S, chosen, axis=1).mean(axis=1), level)
    return None if found[0] == found[1] else found


def _mean(run: Sequence[Sampled]) -> float:
    return float(np.mean([part.values.mean() for part in run]))


def _by_benchmark(runs: Runs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each benchmark float (S, C) twice: sum and number of a run's values of each source image."""
    for parts in zip(*runs, strict=True):
        places: dict[Hashable, int] = {}
        at = [[places.setdefault(name, len(places)) for name in part.clusters] for part in parts]
        sums = [np.bincount(row, _checked(part.values), len(places)) for row, part in zip(at, parts, strict=True)]
        counts = [np.bincount(row, minlength=len(places)) for row in at]
        yield np.array(sums), np.array(counts, dtype=np.float64)


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
