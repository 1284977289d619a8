"""Dropout for fine-tuning, at the four places where BAAI's class has it, from numbers that can be made again.

The places: the embeddings, the attention's probabilities, and both residual branches of each layer. Emu3-Stage1 was
trained with 0.1 at all of them, and so were EARL's models.

Masks are a function of (seed, step, micro-batch, rank, layer) alone. So a resumed run repeats those of the run that
was interrupted without any random state on disk, and a layer that gradient checkpointing runs again in the backward
pass draws its own masks again. Evaluation has no dropout; nor has whatever loads the checkpoint, which says 0.
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
from transformers import Emu3ForCausalLM


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
