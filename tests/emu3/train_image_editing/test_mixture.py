"""Mixtures: shares, repetition, and an order that a position alone continues."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from emu3.errors import UserError
from emu3.train_image_editing.dataset import Mixture


def per_row(mixture: Mixture, dataset: int) -> Counter[int]:
    return Counter(row for index, row in (mixture[i] for i in range(len(mixture))) if index == dataset)


def test_coefficients_are_shares_and_repeat_above_one() -> None:
    mixture = Mixture([10, 4, 6], [0.5, 2.5, 0.0])
    assert len(mixture) == 5 + 10
    assert sorted(per_row(mixture, 0).values()) == [1] * 5
    assert sorted(per_row(mixture, 1).values()) == [2, 2, 3, 3]
    assert not per_row(mixture, 2)


def test_without_coefficients_smaller_sets_reach_the_largest() -> None:
    mixture = Mixture([7, 3])
    assert sum(per_row(mixture, 0).values()) == sum(per_row(mixture, 1).values()) == 7
    assert sorted(per_row(mixture, 1).values()) == [2, 2, 3]


def test_the_seed_chooses_the_subset() -> None:
    """A fixed subset would make every seed of an experiment see the same rows."""
    first, again, other = (set(per_row(Mixture([100], [0.3], seed), 0)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_stream_continues_from_a_position() -> None:
    """A resumed run that restarts its order trains twice on the first rows and never on the last."""
    mixture = Mixture([5, 2], seed=3)
    whole = list(islice(mixture.stream(), 25))
    for position in (0, 4, 10, 13):
        assert list(islice(mixture.stream(position), 25 - position)) == whole[position:]
    assert Counter(whole[:10]) == Counter(whole[10:20])
    assert whole[:10] != whole[10:20]


@pytest.mark.parametrize(
    ("sizes", "coefficients", "message"),
    [
        ([3, 4], [1.0], "1 coefficients for 2"),
        ([3], [-1.0], "not negative"),
        ([3], [float("nan")], "not negative"),
        ([3], [0.0], "leave no row"),
        ([3, 0], None, "needs rows"),
    ],
)
def test_what_does_not_fit_is_refused(sizes: list[int], coefficients: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture(sizes, coefficients)
