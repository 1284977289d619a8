"""Advantages: the formula, the mask of what has no score, the mask of groups that prefer nothing."""

from __future__ import annotations

import statistics

import pytest
import torch

from rl.losses import constant_groups, group_advantages

NAN = float("nan")


def test_formula_is_population_std_plus_epsilon() -> None:
    """Guards against the sample std (ddof 1), which makes advantages of 8 rollouts 7% smaller."""
    rewards = [1.0, 4.0, 4.0, 9.0]
    advantages, trained = group_advantages(torch.tensor([rewards], dtype=torch.float64), drop_constant=True)
    mean, std = statistics.mean(rewards), statistics.pstdev(rewards)
    assert advantages[0].tolist() == pytest.approx([(reward - mean) / (std + 1e-4) for reward in rewards])
    assert trained.all()


def test_without_the_division() -> None:
    """Dr. GRPO's advantage is a plain difference; a group of nearly equal scores then weighs little."""
    rewards = torch.tensor([[1.0, 4.0, NAN, 7.0]], dtype=torch.float64)
    advantages, _ = group_advantages(rewards, drop_constant=False, divide_by_std=False)
    assert advantages.tolist() == [[-3.0, 0.0, 0.0, 3.0]]


def test_unknown_reward_enters_neither_mean_nor_std() -> None:
    """Guards the worst bug of this kind: a judge's failure that counts as a score of zero."""
    with_failure = torch.tensor([[2.0, NAN, 8.0, 5.0]], dtype=torch.float64)
    without = torch.tensor([[2.0, 8.0, 5.0]], dtype=torch.float64)
    advantages, trained = group_advantages(with_failure, drop_constant=True)
    expected, _ = group_advantages(without, drop_constant=True)
    assert trained.tolist() == [[True, False, True, True]]
    assert advantages[0, [0, 2, 3]].tolist() == expected[0].tolist()
    assert advantages[0, 1] == 0


@pytest.mark.parametrize("drop", [True, False])
def test_constant_groups(drop: bool) -> None:
    """A group that prefers nothing is dropped, or (the paper) kept with advantage exactly 0; 0.1 three times has a
    mean that is not 0.1, and a comparison by std would see a preference there."""
    rewards = torch.tensor([[0.1, 0.1, 0.1], [3.0, NAN, NAN], [NAN, NAN, NAN], [1.0, 2.0, 2.0]], dtype=torch.float64)
    advantages, trained = group_advantages(rewards, drop_constant=drop)
    assert constant_groups(rewards).tolist() == [True, True, True, False]
    assert advantages[:3].tolist() == [[0.0] * 3] * 3
    assert trained[:3].tolist() == ([[False] * 3] * 3 if drop else [[True] * 3, [True, False, False], [False] * 3])
    assert trained[3].all()


def test_a_group_of_which_too_little_is_known_prefers_nothing() -> None:
    """Two scores of eight made advantages of +-1, as a whole group's are."""
    rewards = torch.tensor([[2.0, 8.0, NAN, NAN], [2.0, 8.0, 5.0, NAN]], dtype=torch.float64)
    assert constant_groups(rewards, min_known=3).tolist() == [True, False]
    advantages, trained = group_advantages(rewards, drop_constant=True, min_known=3)
    assert advantages[0].tolist() == [0.0] * 4
    assert trained.tolist() == [[False] * 4, [True, True, True, False]]


def test_a_difference_that_no_judge_can_mean_stays_small() -> None:
    """Two scores 0.001 apart give +-0.83 without a floor; a group whose std is above the floor is as without it."""
    rewards = torch.tensor([[5.0, 5.001], [4.0, 6.0]], dtype=torch.float64)
    bare, _ = group_advantages(rewards, drop_constant=True)
    floored, _ = group_advantages(rewards, drop_constant=True, min_std=0.1)
    assert bare[0, 1].item() == pytest.approx(0.0005 / 0.0006)
    assert floored[0, 1].item() == pytest.approx(0.0005 / 0.1001)
    assert floored[1].tolist() == bare[1].tolist()
