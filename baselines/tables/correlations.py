"""How two series of numbers go together.

Pearson asks whether two series lie on a line, Spearman and Kendall (tau-b, which allows for ties: scores are coarse)
whether they rank alike. Coefficients are scipy's. A series without any spread has no correlation with anything;
resamples in which that happens are left out of the interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from baselines.tables.statistics import Interval, percentiles

Level = Literal["pooled", "within", "system"]

CORRELATION_RESAMPLES = 2_000
"""Fewer than for means: Kendall's coefficient takes longer."""
COEFFICIENTS = {"pearson": "pearsonr", "spearman": "spearmanr", "kendall": "kendalltau"}
"""Correlations by their names, and what `scipy.stats` calls them."""


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
