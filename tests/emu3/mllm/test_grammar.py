"""The grammar against a reference that is written in another way: rules over a counter that starts at `img`."""

import json
import random

import numpy as np
import pytest

from emu3.mllm.layout import GridGrammar, TokenLayout

LAYOUT = TokenLayout(text_ranks=300, codebook_size=16)
CODES = (LAYOUT.first_code, LAYOUT.vocab_size)
SIZES = [(1, 1), (1, 5), (5, 1), (2, 3), (3, 2), (6, 6), (4, 11)]


def grammar(height: int, width: int) -> GridGrammar:
    return GridGrammar(LAYOUT, height, width, tuple(f"{height}*{width}".encode()))


def grid(height: int, width: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(LAYOUT.codebook_size) for _ in range(width)] for _ in range(height)]


def reference(height: int, width: int, since_img: int) -> tuple[int, int]:
    """The published rule; `since_img` is 1 for the first token after `img`."""
    end = (width + 1) * height
    forced = {end + 1: LAYOUT.eof, end + 2: LAYOUT.eoi, end + 3: LAYOUT.eos}
    if since_img in forced:
        return forced[since_img], forced[since_img] + 1
    if since_img % (width + 1) == 0:
        return LAYOUT.eol, LAYOUT.eol + 1
    return CODES


@pytest.mark.parametrize(("height", "width"), [(h, w) for h in range(1, 8) for w in range(1, 8)])
def test_legal_ranges_equal_the_published_rule(height: int, width: int) -> None:
    """An eol one column early, or eof taken for an eol, shears the image."""
    rules = grammar(height, width)
    header = [(token, token + 1) for token in (*rules.size_ids, LAYOUT.img)]
    body = [reference(height, width, n) for n in range(1, (width + 1) * height + 4)]
    assert [rules.legal(offset) for offset in range(rules.length)] == header + body


def test_the_published_256_pixel_block() -> None:
    """boi + "32*32" (5 ids) + img + 32 * 33 + eof + eoi = 1,065 tokens; the completion has eos in the place of boi."""
    rules = GridGrammar(TokenLayout(), 32, 32, (18, 17, 9, 18, 17))
    assert rules.length == 1_065
    assert rules.header_length == 6
    assert len(rules.free_offsets()) == 1_024
    assert rules.legal(6) == (151_854, 184_622)
    assert [rules.legal(offset)[0] for offset in (5, 6 + 32, 1_062, 1_063, 1_064)] == [
        151_851,
        151_846,
        151_847,
        151_853,
        151_850,
    ]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_free_offsets_are_those_with_a_choice(height: int, width: int) -> None:
    """Log-probabilities and gradients are taken at these offsets only; a forced one among them biases the loss."""
    rules = grammar(height, width)
    choice = [offset for offset in range(rules.length) if rules.legal(offset) == CODES]
    assert rules.free_offsets() == choice
    assert len(choice) == height * width


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_answer_and_codes_are_inverse(height: int, width: int) -> None:
    """Rows and columns swapped would still have the right length for a square grid."""
    rules, codes = grammar(height, width), grid(height, width)
    completion = rules.completion(codes)
    assert len(completion) == rules.length
    assert all(token in range(*rules.legal(offset)) for offset, token in enumerate(completion))
    assert [completion[offset] - LAYOUT.first_code for offset in rules.free_offsets()] == [
        code for row in codes for code in row
    ]
    assert rules.codes(completion) == codes


@pytest.mark.parametrize("shape", [(3, 2), (2, 4), (1, 3), (3, 3), (2, 0), (0, 0)])
def test_a_grid_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    """A transposed or cut grid would become a completion of the right look that no decoder reads."""
    with pytest.raises(ValueError, match="expected 2 rows of 3 codes"):
        grammar(2, 3).completion(grid(*shape))


def test_every_illegal_token_is_refused() -> None:
    """A broken completion must fail, never decode to some image."""
    rules = grammar(2, 3)
    completion = rules.completion(grid(2, 3))
    for offset in range(rules.length):
        low, high = rules.legal(offset)
        for token in range(LAYOUT.vocab_size + 1):
            changed = [*completion[:offset], token, *completion[offset + 1 :]]
            if low <= token < high:
                assert rules.completion(rules.codes(changed)) == changed
            else:
                with pytest.raises(ValueError, match=f"token {token} at offset {offset} "):
                    rules.codes(changed)


def test_answers_of_another_length_are_refused() -> None:
    rules = grammar(2, 3)
    completion = rules.completion(grid(2, 3))
    for wrong in ([], completion[:-1], [*completion, LAYOUT.eos], grammar(3, 3).completion(grid(3, 3))):
        with pytest.raises(ValueError, match="2x3 grid has 15 tokens"):
            rules.codes(wrong)


def test_the_answer_of_the_transposed_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the legal range"):
        grammar(3, 4).codes([*grammar(4, 3).completion(grid(4, 3)), LAYOUT.eos][: grammar(3, 4).length])


@pytest.mark.parametrize("offset", [-1, 15, 1_000])
def test_offsets_outside_the_answer_are_refused(offset: int) -> None:
    """A negative offset would otherwise count from the end, as lists do."""
    with pytest.raises(IndexError, match="15 tokens"):
        grammar(2, 3).legal(offset)


def test_numpy_codes_become_plain_integers() -> None:
    """uint16 codes plus an id of 151,854 would wrap around; and NumPy integers are not JSON."""
    rules = GridGrammar(TokenLayout(), 1, 2, (16, 9, 17))
    completion = rules.completion(list(np.array([[0, 32_767]], dtype=np.uint16)))
    assert json.loads(json.dumps(completion)) == [
        16,
        9,
        17,
        151_851,
        151_854,
        184_621,
        151_846,
        151_847,
        151_853,
        151_850,
    ]
