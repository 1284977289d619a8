"""A bar on standard error that moves with the tokens that `emu3.mllm.generate` samples.

It listens to the model's forward passes, so that sampling itself knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm import tqdm
from transformers import Emu3ForCausalLM

from emu3.mllm.generate import Request


@contextmanager
def token_bar(model: Emu3ForCausalLM, requests: Sequence[Request]) -> Iterator[tqdm]:
    """Show a bar while `requests` are answered within, on a terminal only.

    It counts the tokens behind the prompts, those of all samples together. How long a chain of thought will be is not
    known before: with one the bar has no end.
    """
    total = None if any(request.think for request in requests) else sum(map(_fed_tokens, requests))
    with tqdm(total=total, unit=" tokens", desc="editing", disable=None, leave=False) as bar:

        def count(trunk: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if keywords["past_key_values"].get_seq_length() > 0:  # else it is the prompt's pass
                bar.update(keywords["input_ids"].numel())

        handle = model.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield bar
        finally:
            handle.remove()


def _fed_tokens(request: Request) -> int:
    """Tokens that the model is fed for all samples: from the first code up to the one before the last."""
    free = request.grammar.free_offsets()
    return len(request.seeds) * (free[-1] - free[0])
