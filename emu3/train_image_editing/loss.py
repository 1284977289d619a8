"""Losses of supervised fine-tuning: cross-entropy on the target tokens, weighted.

The training loss is a sum, divided by the weight of all target tokens of an optimiser step, over its micro-batches
and ranks: a batch cut into other micro-batches has the same gradient. The evaluation loss is a mean per row, then
over rows, unweighted, so it depends neither on the batch size nor on the weights of training.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from emu3.train_image_editing.dataset import IGNORED


def weighted_sum(logits_BKV: Tensor, targets_BK: Tensor, weights_BK: Tensor) -> Tensor:
    """Sum over target tokens of weight times negative log-likelihood in nats, float32 scalar."""
    learned = targets_BK != IGNORED
    losses = F.cross_entropy(logits_BKV[learned].float(), targets_BK[learned], reduction="none")
    return (losses * weights_BK[learned]).sum()


def mean_per_row(logits_BKV: Tensor, targets_BK: Tensor) -> Tensor:
    """Mean negative log-likelihood of each row's target tokens in nats, float32 (B,)."""
    losses = F.cross_entropy(
        logits_BKV.flatten(0, 1).float(), targets_BK.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets_BK).sum(1) / (targets_BK != IGNORED).sum(1)
