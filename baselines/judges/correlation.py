"""How two series of figures about the same samples go together, each with a bootstrap interval over the samples.

Pearson asks whether they lie on a line, Spearman and Kendall (tau-b, which allows for ties: scores are coarse) whether
they rank alike. Coefficients are scipy's. A series without any spread has no correlation with anything; resamples in
which that happens are left out of the interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from baselines.tables.bootstrap import percentiles
from baselines.tables.cells import Interval

RESAMPLES = 2_000
"""Fewer than for means: Kendall's coefficient takes longer."""

COEFFICIENTS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}


@dataclass(frozen=True)
class Correlation:
    """-1 to 1, None where it is undefined; `ci95` is None with it."""

    name: str
    value: float | None
    ci95: Interval | None


def correlations(one: np.ndarray, other: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> list[Correlation]:
    """All `COEFFICIENTS` of two float (n,) arrays; undefined for n < 3."""
    draws = np.random.default_rng(seed).integers(0, max(1, len(one)), size=(resamples, len(one)))
    found = []
    for name, coefficient in COEFFICIENTS.items():
        value = _value(coefficient, one, other)
        resampled = [] if value is None else [_value(coefficient, one[draw], other[draw]) for draw in draws]
        known = np.array([number for number in resampled if number is not None])
        found.append(Correlation(name, value, percentiles(known) if len(known) else None))
    return found


def _value(coefficient: Callable[[np.ndarray, np.ndarray], Any], one: np.ndarray, other: np.ndarray) -> float | None:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    with warnings.catch_warnings():
        # A resample may be constant but for rounding, of which scipy warns.
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(coefficient(one, other).statistic)
