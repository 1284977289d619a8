"""Several continuations of each of a few prompts, side by side, with each prompt in the key-value cache once.

A lane is one continuation; P prompts have G lanes each. A forward pass sees a batch of P rows, and the lanes of a
prompt are G more positions of its row. The cache of a row holds the prompt once, then for each step one slot per lane:

    prompt ... | lane 0, lane 1, ..., lane G-1 | lane 0, lane 1, ..., lane G-1 | ...

A mask lets each lane see the prompt and its own slots; explicit position ids place its tokens behind the prompt. So
nothing is copied per sample, every key and value is read once per step, and the model is transformers' own, with any
attention that takes a 4-D mask. The price is masked scores between the lanes of a prompt, cheap beside the rest of a
step for groups of about 8. The cache is allocated once: appending to a growing one copies it at each step.

Prompts of different lengths are padded on the left. P prompts, G lanes, T tokens, D hidden in the shape comments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Emu3ForCausalLM
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer in a tensor of fixed capacity, written in place."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, size = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.capacity, size)
        self.values = value_states.new_empty(rows, heads, self.capacity, size)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start, self.used = self.used, self.used + key_states.shape[2]
        self.keys[:, :, start : self.used] = key_states
        self.values[:, :, start : self.used] = value_states
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.capacity


class Lanes:
    """The running state of P x G continuations.

    prompts: P token sequences. group: G. capacity: tokens that each lane may be fed at most.
    `hidden` is the trunk's output (P, G, D) at the last token that each lane was fed, at first the prompt's last.
    """

    def __init__(self, model: Emu3ForCausalLM, prompts: Sequence[Sequence[int]], group: int, capacity: int) -> None:
        attention = model.config._attn_implementation
        if ALL_MASK_ATTENTION_FUNCTIONS.get(attention) not in (sdpa_mask, eager_mask):
            raise ValueError(f"sampling needs an attention that takes 4-D masks, as sdpa and eager do, not {attention}")
        self._trunk = model.model
        self._blocked = torch.finfo(model.dtype).min
        device = model.device

        # Room for the longest prompt and for every token that any lane will be fed, in one piece.
        self._used = longest = max(len(prompt) for prompt in prompts)
        slots = longest + group * capacity
        self._cache = Cache(layers=[_SlotLayer(slots) for _ in range(model.config.num_hidden_layers)])

        # Prompts of one length, padded on the left: their last tokens stand in one column.
        padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)  # (P,)
        tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        column = torch.arange(longest, device=device)
        real = column >= padding[:, None]  # (P, longest)

        # What a lane sees of the cache: the real tokens of its prompt, and its own slot of every step to come. The mask
        # is made once for all steps; `feed` takes the part that is filled.
        own = torch.eye(group, dtype=torch.bool, device=device).repeat(1, capacity)  # (G, G * capacity)
        seen = torch.cat([real[:, None].expand(-1, group, -1), own.expand(len(prompts), -1, -1)], dim=-1)
        self._mask = self._additive(seen[:, None], model.dtype)  # (P, 1, G, slots)
        # A lane's tokens stand behind its own prompt, not behind the longest one.
        self._positions = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None].repeat(1, group)

        # The prompts' own pass, causal. A padding token sees itself: a row of the mask without any key would turn its
        # keys and values into NaN.
        causal = (column[:, None] >= column) & (real[:, None] | (column[:, None] == column))  # (P, longest, longest)
        hidden = self._forward(
            tokens, self._additive(causal[:, None], model.dtype), (column - padding[:, None]).clamp_min(0)
        )
        # All lanes of a prompt begin where it ends.
        self.hidden = hidden[:, -1:].expand(-1, group, -1)

    def feed(self, tokens: Tensor, alive: Tensor | None = None) -> None:
        """Append `tokens` (P, T, G) int64 to the lanes and set `hidden`.

        alive: (P, G) bool. A lane that is not alive forgets these tokens and stays where it was; its row of `hidden`
        means nothing until it is fed again.
        """
        prompts, steps, group = tokens.shape
        # The next `steps` slots of every lane: step by step, in each the lanes side by side.
        start, self._used = self._used, self._used + steps * group
        step = torch.arange(steps, device=tokens.device)
        positions = self._positions[:, None] + step[:, None]  # (P, T, G)
        mask = self._mask[..., : self._used]
        if steps > 1:  # among the new tokens a lane sees its earlier ones only
            mask = mask.repeat(1, steps, 1, 1)  # (P, T, G, used)
            later = step.repeat_interleave(group) > step[:, None]  # (T, T * G)
            mask[..., start:].masked_fill_(later[:, None], self._blocked)
            mask = mask.reshape(prompts, 1, steps * group, self._used)
        self.hidden = self._forward(tokens.flatten(1), mask, positions.flatten(1))[:, -group:]
        if alive is None:
            self._positions += steps
        else:  # who is not alive never sees these slots again, and its next token takes the same position
            self._mask[..., start : self._used].masked_fill_(~alive[:, None, :, None], self._blocked)
            self._positions += steps * alive

    def _additive(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, self._blocked)

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self._trunk(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
