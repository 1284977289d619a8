"""Intervals against cases that are known exactly and a distribution that is known."""

from __future__ import annotations

import numpy as np
import pytest

from baselines.tables import statistics
from baselines.tables.statistics import average_interval, mean_interval


def test_two_values_exactly() -> None:
    """Guards percentiles and level: resampled means of {0, 1} are 0, 1/2, 1 with weights 1/4, 1/2, 1/4."""
    values = np.array([0.0, 1.0])
    assert mean_interval(values) == (0.0, 1.0)
    assert mean_interval(values, level=0.4) == (0.5, 0.5)


def test_of_equal_values_has_no_width() -> None:
    assert mean_interval(np.full(7, 3.25)) == (3.25, 3.25)


def test_agrees_with_the_normal_interval() -> None:
    """Guards scale: for many well-behaved values the bootstrap is mean ± 1.96 standard errors."""
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = mean_interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_covers_the_true_mean_as_often_as_it_says() -> None:
    """Guards against an interval of single values or of another level, on lumpy scores between 0 and 10."""
    random = np.random.default_rng(2)
    draws = [np.sqrt(random.integers(0, 2, 100) * 60.0) for _ in range(300)]
    truth = np.sqrt(60.0) / 2
    intervals = [mean_interval(values, resamples=500) for values in draws]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    # 0.95 ± 3 standard errors of 300 draws, and the bootstrap's own shortfall at n = 100.
    assert 0.90 <= covered <= 0.985


def test_portions_do_not_lose_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the memory bound: many values go in portions, and all resamples count."""
    values = np.random.default_rng(3).normal(size=50)
    whole = mean_interval(values, resamples=2001)
    monkeypatch.setattr(statistics, "_INDICES_AT_ONCE", 1000)
    assert mean_interval(values, resamples=2001) == pytest.approx(whole, abs=0.03)


def test_depends_on_the_seed_only() -> None:
    values = np.random.default_rng(4).normal(size=30)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5) != mean_interval(values, seed=6)


@pytest.mark.parametrize("values", [[], [4.0]])
def test_says_nothing_about_fewer_than_two(values: list[float]) -> None:
    """Guards against an interval of zero width that looks like certainty."""
    assert mean_interval(np.array(values)) is None


def test_refuses_a_failure_as_a_number() -> None:
    """Guards the promise that an unknown score is never averaged: NaN must not come through."""
    with pytest.raises(ValueError, match="finite"):
        mean_interval(np.array([1.0, np.nan]))


def test_average_of_two_groups_exactly() -> None:
    """Guards equal weights: resampled means of {0, 2} are 0, 1, 2 with weights 1/4, 1/2, 1/4, and 8 is always 8."""
    groups = [np.array([0.0, 2.0]), np.full(40, 8.0)]
    assert average_interval(groups) == (4.0, 5.0)
    assert average_interval(groups, level=0.4) == (4.5, 4.5)


def test_average_draws_its_groups_apart() -> None:
    """Guards against one stream for all groups: equal groups would move together, and the interval of their average
    would be as wide as that of one of them."""
    values = np.random.default_rng(5).normal(size=200)
    low, high = average_interval([values] * 4)
    one_low, one_high = mean_interval(values)
    # The standard error of a mean of four is half that of one; 0.1 covers the noise of 10,000 resamples.
    assert (high - low) / (one_high - one_low) == pytest.approx(0.5, abs=0.1)


def test_average_needs_every_group() -> None:
    assert average_interval([np.arange(5.0), np.array([1.0])]) is None
    assert average_interval([]) is None
