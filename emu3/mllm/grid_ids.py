"""A grid of codes to token ids and back, whole arrays at a time: `GridGrammar.answer` and `.codes` for hot paths."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from emu3.mllm.grammar import GridGrammar


def grid_to_ids(grammar: GridGrammar, codes: np.ndarray) -> np.ndarray:
    """The tokens that follow `boi` for `codes`, integers (height, width): int64 (grammar.length,).

    Raises ValueError for another shape and for codes outside the codebook.
    """
    if codes.shape != (grammar.height, grammar.width):
        raise ValueError(f"want {grammar.height} rows of {grammar.width} codes, got shape {codes.shape}")
    if codes.min() < 0 or codes.max() >= grammar.layout.codebook_size:
        raise ValueError(f"codes run from 0 to {grammar.layout.codebook_size - 1}, got {codes.min()} to {codes.max()}")
    answer, free = _template(grammar)
    ids = answer.copy()
    ids[free] += codes.reshape(-1)
    return ids


def ids_to_grid(grammar: GridGrammar, ids: np.ndarray) -> np.ndarray:
    """The codes, int64 (height, width), in the tokens that follow `boi`, integers (grammar.length,).

    Raises ValueError if they break the grammar.
    """
    answer, free = _template(grammar)
    if ids.shape != answer.shape:
        raise ValueError(f"a {grammar.height}x{grammar.width} grid wants {len(answer)} tokens, got {ids.shape}")
    difference = ids - answer
    codes = difference[free]
    difference[free] = 0
    if difference.any() or codes.min() < 0 or codes.max() >= grammar.layout.codebook_size:
        grammar.codes(ids.tolist())  # says which token it is
    return codes.reshape(grammar.height, grammar.width)


@lru_cache(maxsize=1024)
def _template(grammar: GridGrammar) -> tuple[np.ndarray, np.ndarray]:
    """The answer of a grid of zeros, and the places of its codes."""
    zeros = [[0] * grammar.width] * grammar.height
    answer, free = np.array(grammar.answer(zeros)), np.array(grammar.free_offsets())
    answer.flags.writeable = False
    return answer, free
