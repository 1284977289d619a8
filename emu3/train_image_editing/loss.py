"""Losses of supervised fine-tuning: cross-entropy on the target tokens, weighted, without the logits of a whole batch.

The training loss is a sum, divided by the weight of all target tokens of an optimizer step, over its micro-batches
and ranks: a batch cut into other micro-batches has the same gradient. The evaluation loss is a mean per row, then
over rows, unweighted, so it depends neither on the batch size nor on the weights of training.

The head is multiplied at target positions only and a chunk of them at a time (`emu3.training.head`). Unlike in
reinforcement learning it is multiplied whole, by all ids of the vocabulary: that is the published objective, which
also teaches where text ends and an image begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3.train_image_editing.dataset import IGNORED
from emu3.training.head import CHUNK_BYTES, chosen_logprobs


class TargetLosses(nn.Module):
    """`model` as a module whose forward pass gives the losses of the target tokens.

    A module, because DeepSpeed gathers sharded weights in hooks around forward passes, and the head's weight is used
    here and not in a forward pass of its own. transformers' Trainer asks a model for the two things below.
    chunk_bytes: bound on the logits that are there at once.
    """

    def __init__(self, model: Emu3ForCausalLM, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__()
        self.model = model
        self._chunk_bytes = chunk_bytes

    @property
    def config(self) -> Emu3TextConfig:
        return self.model.config

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        self.model.gradient_checkpointing_enable(**options)

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihoods (N,), float32, in nats, of the N targets (B, K) that are not IGNORED, row by row.

        targets: the last K of them follow the last K inputs (B, T).
        """
        states = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        learned = targets != IGNORED
        hidden = states[:, -targets.shape[1] :][learned]
        logprobs, _ = chosen_logprobs(hidden, self.model.lm_head.weight, targets[learned], 1.0, self._chunk_bytes)
        return -logprobs


def weighted_sum(losses_N: Tensor, targets_BK: Tensor, weights_BK: Tensor) -> Tensor:
    """Sum over target tokens of weight times loss, scalar."""
    return (losses_N * weights_BK[targets_BK != IGNORED]).sum()


def mean_per_row(losses_N: Tensor, targets_BK: Tensor) -> Tensor:
    """Mean loss of each row's target tokens, (B,)."""
    counts = (targets_BK != IGNORED).sum(1)
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return torch.zeros(len(counts), dtype=losses_N.dtype, device=counts.device).index_add(0, rows, losses_N) / counts
