"""From the judge's scores to advantages: each rollout against the other rollouts of its prompt (GRPO).

A = (r - mean) / (std + 1e-4) over the group, with the population standard deviation, as EARL's published code has
it; `dr_grpo` leaves out the division, which gives groups of nearly equal scores the weight of the others (Liu et al.
2025). Two masks are added. A rollout without a score (the judge was out of reach, or its answer could not be read) is
unknown, not bad: it enters neither mean nor std and is not trained on. A group whose scores are all equal says
nothing about what to prefer; `drop_constant` leaves it out of the loss and of its token count, otherwise (the
paper) it stays in with advantage 0 and still feels the KL term.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4


def constant_groups(rewards_P_G: Tensor) -> Tensor:
    """bool (P,): groups whose known rewards are all equal, those with fewer than two known ones included.

    rewards_P_G: (P, G), NaN where there is no score.
    """
    unknown_P_G = rewards_P_G.isnan()
    highest_P = rewards_P_G.masked_fill(unknown_P_G, -torch.inf).amax(dim=1)
    lowest_P = rewards_P_G.masked_fill(unknown_P_G, torch.inf).amin(dim=1)
    return highest_P <= lowest_P


def group_advantages(rewards_P_G: Tensor, *, drop_constant: bool, divide_by_std: bool = True) -> tuple[Tensor, Tensor]:
    """Advantages and which rollouts are trained on.

    rewards_P_G: float64 (P, G), NaN where there is no score. divide_by_std: False gives A = r - mean.
    Returns advantages float64 (P, G), 0 where there is no score or nothing to prefer, and trained bool (P, G).
    """
    known_P_G = ~rewards_P_G.isnan()
    mean_P_1 = rewards_P_G.nanmean(dim=1, keepdim=True)
    std_P_1 = (rewards_P_G - mean_P_1).square().nanmean(dim=1, keepdim=True).sqrt()
    # By comparison, not by a std of 0: the mean of equal numbers can be off by a rounding, and its residue with it.
    constant_P_1 = constant_groups(rewards_P_G).unsqueeze(1)
    advantages_P_G = rewards_P_G - mean_P_1
    if divide_by_std:
        advantages_P_G = advantages_P_G / (std_P_1 + EPSILON)
    advantages_P_G = advantages_P_G.masked_fill(~known_P_G | constant_P_1, 0.0)
    return advantages_P_G, known_P_G & ~constant_P_1 if drop_constant else known_P_G
