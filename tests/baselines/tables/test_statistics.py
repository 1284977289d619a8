"""Intervals against cases that are known exactly and a distribution that is known."""

from __future__ import annotations

import os

import numpy as np
import pytest

from baselines.tables import statistics
from baselines.tables.correlations import correlations
from baselines.tables.statistics import (
    Interval,
    Sampled,
    average_interval,
    failure_bounds,
    mean_interval,
    nested_interval,
    seed_interval,
)


def test_two_values_exactly() -> None:
    """Guards percentiles and level: resampled means of {0, 1} are 0, 1/2, 1 with weights 1/4, 1/2, 1/4."""
    values = np.array([0.0, 1.0])
    assert mean_interval(values) == (0.0, 1.0)
    assert mean_interval(values, level=0.4) == (0.5, 0.5)


def test_equal_values_have_no_interval() -> None:
    """An interval without width looked like certainty: seven equal scores do not say that the next is one more."""
    assert mean_interval(np.full(7, 3.25)) is None
    assert average_interval([np.full(7, 3.25), np.full(5, 1.0)]) is None


def test_agrees_with_the_normal_interval() -> None:
    """Guards scale: for many well-behaved values the bootstrap is mean ± 1.96 standard errors."""
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = mean_interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


# 95% within 3 points where there is time for it; else within what twice the standard error of a coverage over so many
# simulations (1.1 points of 400, 2.2 of 100) adds. EARL_SLOW=1 takes a quarter of an hour of one core.
SLOW = bool(os.environ.get("EARL_SLOW"))
SIMULATIONS, ROOM = (2000, 0.03) if SLOW else (400, 0.052)
FEWER, FEWER_ROOM = (SIMULATIONS, ROOM) if SLOW else (100, 0.072)


def lumpy(random: np.random.Generator, n: int, good: float = 0.5) -> np.ndarray:
    """Scores with lumps at both ends, as a judge gives them; their mean is `10 * good * 0.8`."""
    return np.where(random.random(n) < good, 10 - 4 * random.random(n), 0.0)


@pytest.mark.parametrize("n", [100, 500])
def test_covers_the_true_mean_as_often_as_it_says(n: int) -> None:
    """Guards against an interval of single values or of another level, on lumpy scores between 0 and 10."""
    random = np.random.default_rng(2)
    found = [mean_interval(lumpy(random, n), resamples=400) for _ in range(SIMULATIONS)]
    assert coverage(found, 4.0) == pytest.approx(0.95, abs=ROOM)


@pytest.mark.parametrize("n", [100, 500])
def test_covers_the_true_difference_of_pairs(n: int) -> None:
    random = np.random.default_rng(3)
    found = []
    for _ in range(SIMULATIONS):
        easy = random.normal(5, 2, n)  # what a sample is for both models
        one, other = easy + random.exponential(1.0, n), easy + 0.5 * random.exponential(1.0, n)
        found.append(mean_interval(one - other, resamples=400))
    assert coverage(found, 0.5) == pytest.approx(0.95, abs=ROOM)


@pytest.mark.parametrize("n", [100, 500])
def test_covers_the_true_average_of_benchmarks(n: int) -> None:
    random = np.random.default_rng(4)
    shares = (0.1, 0.3, 0.5, 0.5, 0.7, 0.9)
    found = [average_interval([lumpy(random, n, share) for share in shares], resamples=200) for _ in range(FEWER)]
    assert coverage(found, 4.0) == pytest.approx(0.95, abs=FEWER_ROOM)


@pytest.mark.parametrize("n", [100, 500])
@pytest.mark.parametrize("clustered", [True, False])
def test_edits_of_one_image_are_drawn_together(clustered: bool, n: int) -> None:
    """One to nine edits of each of n images, half of whose scores is the image's: drawn apart they count as so many
    samples, and the interval covers the truth far less often than it says."""
    random = np.random.default_rng(5)
    found = []
    for _ in range(FEWER if n > 100 else SIMULATIONS):
        images = np.repeat(np.arange(n), random.integers(1, 10, n))
        values = random.normal(5, 1, n)[images] + random.normal(0, 1, len(images))
        found.append(mean_interval(values, clusters=images.tolist() if clustered else None, resamples=400))
    if clustered:
        assert coverage(found, 5.0) == pytest.approx(0.95, abs=FEWER_ROOM if n > 100 else ROOM)
    else:
        assert coverage(found, 5.0) < 0.85


def runs_of(*values: np.ndarray, shared: bool) -> list[list[Sampled]]:
    """Runs on one benchmark; shared: on the same source images."""
    return [[Sampled(run, [(0 if shared else s, row) for row in range(len(run))])] for s, run in enumerate(values)]


@pytest.mark.parametrize("n", [100, 500])
@pytest.mark.parametrize(("seeds", "shared"), [(3, False), (3, True), (5, True)])
def test_intervals_over_seeds(seeds: int, shared: bool, n: int) -> None:
    """What one run's interval does not cover: its seed. By t it holds, also where all runs have the same samples, whose
    luck the runs' means do not show; drawing runs and samples falls short with few runs, as its docstring says, and is
    better than samples alone."""
    random = np.random.default_rng(6)
    by_t, nested, alone = [], [], []
    for _ in range(SIMULATIONS):
        easy = random.normal(0, 2, (1 if shared else seeds, n))
        values = random.normal(5, 0.5, (seeds, 1)) + easy + random.normal(0, 1, (seeds, n))
        runs = runs_of(*values, shared=shared)
        by_t.append(seed_interval(runs))
        if len(nested) < FEWER:
            nested.append(nested_interval(runs, resamples=200))
            alone.append(mean_interval(values.ravel(), resamples=200))
    assert coverage(by_t, 5.0) == pytest.approx(0.95, abs=ROOM)
    assert coverage(alone, 5.0) < 0.7 < coverage(nested, 5.0)


def test_seeds_with_samples_of_their_own_are_students_t() -> None:
    """Guards the formula: three means 1, 2, 6 have the mean 3, the standard error sqrt(7 / 3), and t is 4.3027."""
    runs = runs_of(*(np.array([mean - 1.0, mean + 1.0]) for mean in (1.0, 2.0, 6.0)), shared=False)
    low, high = seed_interval(runs)
    assert (low + high) / 2 == pytest.approx(3.0) and (high - low) / 2 == pytest.approx(4.30265 * (7 / 3) ** 0.5)
    assert seed_interval(runs[:1]) is None and nested_interval(runs[:1]) is None


def test_runs_that_are_alike_do_not_narrow_the_interval() -> None:
    """Guards against three runs of a greedy editor that look like certainty: t over three equal means has no width."""
    values = lumpy(np.random.default_rng(9), 400)
    low, high = seed_interval(runs_of(values, values, values, shared=True))
    one_low, one_high = mean_interval(values)
    assert high - low == pytest.approx(one_high - one_low, rel=0.05)
    nested_low, nested_high = nested_interval(runs_of(values, values, values, shared=True))
    assert nested_high - nested_low == pytest.approx(one_high - one_low, rel=0.05)
    assert seed_interval(runs_of(*[np.full(9, 2.0)] * 3, shared=True)) is None


def test_average_over_benchmarks_and_seeds() -> None:
    """Three runs on two benchmarks: their seed moves both, the samples are shared by the runs."""
    random = np.random.default_rng(10)
    found = []
    for _ in range(SIMULATIONS):
        easy = random.normal(0, 2, (2, 100))
        luck = random.normal(0, 0.2, 3)
        runs = [[Sampled(4 + shift + row + random.normal(0, 1, 100), range(100)) for row in easy] for shift in luck]
        found.append(seed_interval(runs))
    assert coverage(found, 4.0) == pytest.approx(0.95, abs=ROOM)


@pytest.mark.parametrize("n", [100, 500] if SLOW else [100])
@pytest.mark.parametrize(("name", "truth"), [("pearson", 0.6), ("spearman", 6 / np.pi * np.arcsin(0.3))])
def test_coverage_of_agreement(name: str, truth: float, n: int) -> None:
    """Coefficients of normal pairs whose true Pearson coefficient is 0.6."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(1000 if SLOW else 100):
        one = random.normal(size=n)
        other = 0.6 * one + 0.8 * random.normal(size=n)
        [agreement] = correlations(one, other, resamples=200 if SLOW else 100, names=[name])
        found.append(agreement.ci95)
    # So few resamples make it a little too narrow.
    assert coverage(found, truth) == pytest.approx(0.95, abs=FEWER_ROOM)


def test_models_that_differ_make_a_judge_look_good() -> None:
    """Two sides that know which of two models is better and nothing else agree over all pairs (Pearson 0.7), not within
    a model; the means of four models agree."""
    random = np.random.default_rng(8)
    models = np.repeat([0.0, 1.0, 2.0, 3.0], 200)
    names = [str(model) for model in models]
    one, other = (2 * models + random.normal(size=800) for _ in range(2))
    found = {
        level: correlations(one, other, models=names, level=level, resamples=100)[0]  # type: ignore[arg-type]
        for level in ("pooled", "within", "system")
    }
    assert found["pooled"].value > 0.7
    assert found["within"].ci95[0] < 0 < found["within"].ci95[1]
    assert found["system"].value > 0.99


def test_failures_between_bounds() -> None:
    """Failing 60% of a model's zeros lifted its mean from 2.6 to 3.8: the truth lies between all 0 and all 10."""
    assert failure_bounds(5.0, n=2, failed=2) == (2.5, 7.5)
    assert failure_bounds(5.0, n=2, failed=0) == (5.0, 5.0)


def coverage(intervals: list[Interval | None], truth: float) -> float:
    return float(np.mean([interval is not None and interval[0] <= truth <= interval[1] for interval in intervals]))


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
