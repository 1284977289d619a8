"""What a step of supervised fine-tuning computes: dropout in the model, the head in chunks, the weighted loss.

The training loss is a sum of cross-entropies, divided by the weight of all target tokens of an optimizer step, over
its micro-batches and ranks: a batch cut into other micro-batches has the same gradient. The evaluation loss is a mean
per row, then over rows, unweighted, so it depends neither on the batch size nor on the weights of training.

The head is multiplied at target positions only and a chunk of them at a time (`emu3.mllm.head`). Unlike in
reinforcement learning it is multiplied whole, by all ids of the vocabulary: that is the published objective, which
also teaches where text ends and an image begins.

Dropout is at the four places where BAAI's class has it: the embeddings, the attention's probabilities, and both
residual branches of each layer. EARL's models were trained with 0.1 at all of them. Masks are a function of (seed,
step, micro-batch, rank, layer) alone. So a resumed run repeats those of the run that was interrupted without any random
state on disk, and a layer that gradient checkpointing runs again in the backward pass draws its own masks again.
Evaluation has no dropout; nor has whatever loads the checkpoint, which says 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3.mllm.head import CHUNK_BYTES, target_logprobs
from emu3.train_image_editing.dataset import IGNORED


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
        return -target_logprobs(hidden, self.model.lm_head.weight, targets[learned], self._chunk_bytes)


def weighted_sum(losses_N: Tensor, targets_BK: Tensor, weights_BK: Tensor) -> Tensor:
    """Sum over target tokens of weight times loss, scalar."""
    return (losses_N * weights_BK[targets_BK != IGNORED]).sum()


def mean_per_row(losses_N: Tensor, targets_BK: Tensor) -> Tensor:
    """Mean loss of each row's target tokens, (B,)."""
    counts = (targets_BK != IGNORED).sum(1)
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return torch.zeros(len(counts), dtype=losses_N.dtype, device=counts.device).index_add(0, rows, losses_N) / counts


class Dropout:
    """Puts dropout of `rate`, above 0 and below 1, into a model.

    `at` is called before each micro-batch of training.
    """

    def __init__(self, model: Emu3ForCausalLM, rate: float, seed: int, rank: int) -> None:
        self._rate = rate
        self._seed, self._rank = seed, rank
        self._step = self._micro_batch = 0
        embeddings = model.model.embed_tokens
        embeddings.register_forward_hook(self._drop_embeddings)
        for number, layer in enumerate(model.model.layers, start=1):
            layer.dropout.p = rate
            layer.self_attn.attention_dropout = rate
            layer.forward = self._seeded(layer.forward, layer, number)

    def at(self, step: int, micro_batch: int) -> None:
        """From now on masks are those of this micro-batch of this optimizer step."""
        self._step, self._micro_batch = step, micro_batch

    def _drop_embeddings(self, module: nn.Module, _: Any, embedded: Tensor) -> Tensor:
        if not module.training:
            return embedded
        with self._random_numbers(embedded.device, 0):
            return F.dropout(embedded, self._rate)

    def _seeded(self, forward: Callable[..., Any], layer: nn.Module, number: int) -> Callable[..., Any]:
        @wraps(forward)
        def with_masks(hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
            if not layer.training:
                return forward(hidden_states, *arguments, **options)
            with self._random_numbers(hidden_states.device, number):
                return forward(hidden_states, *arguments, **options)

        return with_masks

    @contextmanager
    def _random_numbers(self, device: torch.device, layer: int) -> Iterator[None]:
        """torch's random numbers on `device` are those of `layer`; outside they go on as if nothing had been drawn."""
        place = (self._seed, self._step, self._micro_batch, self._rank, layer)
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed & (2**63 - 1))
            yield
