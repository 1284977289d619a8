"""What may come next in a completion, as a table: the one grammar behind each of vLLM's interfaces.

The completion is in a state, a whole number, and the table says for each state which ids are legal: a half-open range,
and one id besides. With thinking the first states are the tokens of thought so far, legal are the text ids and `boi`,
and in the last of them the budget is spent and `boi` is forced (`emu3.mllm.generate`). The others are the offsets of
the grid grammar (`emu3.mllm.layout`). Finding a row takes an addition, whatever the size of the vocabulary.

The functions on tensors below find the state of each row of a batch, and forbid what is not legal in it. Axes: R rows,
W tokens of a window on what was drawn, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from emu3.mllm.layout import GridGrammar, TokenLayout

Legal = tuple[int, int, int]

# The rule's name among a request's extra arguments.
KEY = "emu3_completion"


@dataclass(frozen=True)
class CompletionRule:
    """The tokens that vLLM draws for one request.

    think_tokens: longest chain of thought, or None without one. Without one nothing in front of the first code is
    drawn: it goes with the prompt (`opening`).
    """

    grammar: GridGrammar
    think_tokens: int | None

    @property
    def opening(self) -> list[int]:
        """Ids between the request's prompt and the first token that is drawn."""
        if self.think_tokens is not None:
            return []
        header = range(self.grammar.header_length)
        return [self.grammar.layout.boi, *(self.grammar.legal(offset)[0] for offset in header)]

    @property
    def first_state(self) -> int:
        """The state in which the first token is drawn."""
        return 0 if self.think_tokens is not None else self.grammar.header_length

    @property
    def thinking_states(self) -> int:
        """States before `boi`, 0 without thinking."""
        return 0 if self.think_tokens is None else self.think_tokens + 1

    @property
    def most_tokens(self) -> int:
        """Tokens drawn at most: up to and with `eof`, where the completion is decided."""
        return len(self.table) - 2 - self.first_state

    @cached_property
    def table(self) -> tuple[Legal, ...]:
        """(low, high, also) of each state: legal are low <= id < high and `also`."""
        layout = self.grammar.layout
        thinking = [(0, layout.pad, layout.boi)] * (self.thinking_states - 1)
        spent = [(layout.boi, layout.boi + 1, layout.boi)] * min(1, self.thinking_states)
        grid = [(low, high, low) for low, high in map(self.grammar.legal, range(self.grammar.length))]
        return (*thinking, *spent, *grid)

    def state(self, drawn: int, opened: int | None) -> int:
        """The state after `drawn` tokens of which number `opened` (from 0) was `boi`; None: none was.

        vLLM may ask for a token or two behind `eof` before it stops; they are in the table too.
        """
        state = self.first_state + drawn if opened is None else self.thinking_states + drawn - opened - 1
        return min(state, len(self.table) - 1)

    def arguments(self) -> dict[str, list[int]]:
        """The rule as the extra arguments of a vLLM request."""
        grammar, layout = self.grammar, self.grammar.layout
        budget = -1 if self.think_tokens is None else self.think_tokens
        sizes = [layout.text_ranks, layout.codebook_size, grammar.height, grammar.width, budget]
        return {KEY: [*sizes, *grammar.size_ids]}


def rule_of(arguments: Mapping[str, Any] | None) -> CompletionRule | None:
    """The rule in a request's extra arguments, None if it has none. ValueError if it cannot be one."""
    numbers = (arguments or {}).get(KEY)
    if numbers is None:
        return None
    whole = isinstance(numbers, Sequence) and all(isinstance(number, int) for number in numbers)
    if not whole or len(numbers) < 6 or min(numbers[:4]) < 1 or numbers[4] < -1:
        raise ValueError(f"{KEY}: expected text ranks, codes, height, width, budget of thought or -1, and size ids")
    return _rule(tuple(numbers))


@lru_cache(maxsize=256)
def _rule(numbers: tuple[int, ...]) -> CompletionRule:
    text_ranks, codes, height, width, budget, *size_ids = numbers
    grammar = GridGrammar(TokenLayout(text_ranks, codes), height, width, tuple(size_ids))
    return CompletionRule(grammar, None if budget < 0 else budget)


def mask_illegal(logits_R_V: Tensor, legal_R_3: Tensor) -> Tensor:
    """Set, in place, every logit outside low <= id < high and id == also to minus infinity; returns the logits.

    legal_R_3: integers (low, high, also), on the logits' device.
    """
    ids_V = torch.arange(logits_R_V.shape[1], device=logits_R_V.device)
    low_R_1, high_R_1, also_R_1 = legal_R_3.split(1, dim=1)
    illegal_R_V = ((ids_V < low_R_1) | (ids_V >= high_R_1)) & (ids_V != also_R_1)
    return logits_R_V.masked_fill_(illegal_R_V, -torch.inf)


def row_states(
    drawn_R: Tensor, window_R_W: Tensor, boi_R: Tensor, first_state_R: Tensor, thinking_states_R: Tensor
) -> Tensor:
    """`CompletionRule.state` of each row, on the device; the caller bounds it by the last state.

    drawn_R: tokens drawn so far. window_R_W: the first W of them; what stands behind the drawn ones is ignored. W may
    be 0 where no row thinks.
    """
    device = window_R_W.device
    seen_R_W = torch.arange(window_R_W.shape[1], device=device) < torch.minimum(drawn_R, thinking_states_R)[:, None]
    is_boi_R_W = (window_R_W == boi_R[:, None]) & seen_R_W
    thought_R = (is_boi_R_W.cumsum(1) == 0).sum(1)  # tokens in front of the first `boi`
    opened_R = is_boi_R_W.any(1)
    return torch.where(opened_R, thinking_states_R + drawn_R - thought_R - 1, first_state_R + drawn_R)
