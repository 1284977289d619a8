"""How sure a mean is: the percentile bootstrap (Efron, 1979), seeded, vectorised.

The mean of a few hundred scores between 0 and 10 with lumps at both ends is far enough from normal that an interval
from the data's own resamples is the honest one. Each of the resamples draws n of the n values with replacement; the
interval runs between the percentiles of their means. Samples are taken as independent: several edits of one picture
in one benchmark make the true interval a little wider than the one computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
_INDICES_AT_ONCE = 1 << 22


def mean_interval(
    values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[float, float] | None:
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
) -> tuple[float, float] | None:
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


def percentiles(statistics: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
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
