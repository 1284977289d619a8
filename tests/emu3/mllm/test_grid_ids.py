"""The array path equals the plain one, in what it gives and in what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.mllm.sequence import grid_to_ids, ids_to_grid

LAYOUT = TokenLayout(text_ranks=300, codebook_size=50)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 1), (4, 6)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_equals_the_plain_path(height: int, width: int, dtype: type) -> None:
    """uint16 as shards have it: added to an offset in its own type it would wrap around."""
    grammar = GridGrammar(LAYOUT, height, width, size_ids=(7, 8, 9))
    codes: np.ndarray = np.random.default_rng(0).integers(0, 50, (height, width)).astype(dtype)
    codes.flat[0], codes.flat[-1] = 0, 49
    ids = grid_to_ids(grammar, codes)
    assert ids.tolist() == grammar.completion(codes.tolist())
    assert ids_to_grid(grammar, ids).tolist() == grammar.codes(ids.tolist()) == codes.tolist()


def test_every_broken_token_is_refused() -> None:
    """In the same words as the plain path."""
    grammar = GridGrammar(LAYOUT, 2, 3, size_ids=(7, 8))
    whole = grid_to_ids(grammar, np.zeros((2, 3), np.int64))
    for offset in range(grammar.length):
        low, high = grammar.legal(offset)
        for token in (low - 1, high):
            ids = whole.copy()
            ids[offset] = token
            with pytest.raises(ValueError, match=f"token {token} at offset {offset} ") as ours:
                ids_to_grid(grammar, ids)
            with pytest.raises(ValueError, match="offset") as plain:
                grammar.codes(ids.tolist())
            assert str(ours.value) == str(plain.value)


def test_wrong_shapes_and_codes_are_refused() -> None:
    grammar = GridGrammar(LAYOUT, 2, 3, size_ids=(7,))
    for codes in (np.zeros((3, 2), int), np.full((2, 3), 50), np.full((2, 3), -1)):
        with pytest.raises(ValueError, match="codes"):
            grid_to_ids(grammar, codes)
    with pytest.raises(ValueError, match="tokens"):
        ids_to_grid(grammar, np.zeros(4, int))


def test_the_template_is_not_written_to() -> None:
    """It is shared by all grids of one size."""
    grammar = GridGrammar(LAYOUT, 2, 2, size_ids=(7,))
    first = grid_to_ids(grammar, np.full((2, 2), 49))
    assert ids_to_grid(grammar, grid_to_ids(grammar, np.zeros((2, 2), int))).tolist() == [[0, 0], [0, 0]]
    assert ids_to_grid(grammar, first).tolist() == [[49, 49], [49, 49]]
