"""Boxes point at the same thing before and after the picture is resized."""

from __future__ import annotations

import pytest

from emu3.train_image_editing.boxes import rescale_boxes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the dog [100, 40, 200, 80] runs", "the dog [50, 10, 100, 20] runs"),
        ("[10,20,30,40]", "[5, 5, 15, 10]"),
        ("[ 10 ,\n20, 30,40 ]", "[5, 5, 15, 10]"),
        ("[11.6, 40.0, 30., 47.9]", "[6, 10, 15, 12]"),
        ('{"dog": [[2, 4, 6, 8], [20, 40, 60, 80]]}', '{"dog": [[1, 1, 3, 2], [10, 10, 30, 20]]}'),
        ("[0, 0, 400, 400]", "[0, 0, 200, 100]"),
    ],
)
def test_each_side_has_its_own_scale(text: str, expected: str) -> None:
    """x and y swapped, or one scale for both, is right for square pictures only."""
    assert rescale_boxes(text, (400, 400), (200, 100)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "no box", "[1, 2, 3]", "[1, 2, 3, 4, 5]", "[1, 2, 3, four]", "(1, 2, 3, 4)", "[1 2 3 4]", "[]", "[,,,]"),
        *("[1e2, 2, 3, 4]", "[1, 2, 3, 4", "the years [1999, 2000]", "[１, ２, ３, ４]"),
    ],
)
def test_what_is_no_box_stays(text: str) -> None:
    assert rescale_boxes(text, (400, 400), (200, 100)) == text


def test_shares_of_the_sides_stay() -> None:
    """Rounded to pixels they would all become 0 or 1."""
    for text in ("[0.1, 0.25, 0.5, 0.9]", "[0, 0, 1, 1]"):
        assert rescale_boxes(text, (400, 400), (200, 100)) == text
    assert rescale_boxes("[0, 0, 2, 1]", (400, 400), (200, 100)) == "[0, 0, 1, 0]"


def test_a_box_ends_where_the_picture_does() -> None:
    """Annotators overshoot, and up to seven columns and rows have no code."""
    text = "[-5, -0.4, 401, 399]"
    assert rescale_boxes(text, (400, 400), (206, 103), (200, 96)) == "[0, 0, 200, 96]"
    assert rescale_boxes(text, (400, 400), (200, 100)) == "[0, 0, 200, 100]"


def test_absurd_numbers_end_at_the_edge() -> None:
    """Infinity has no integer, and a row is not worth a crash."""
    assert rescale_boxes(f"[0, 0, {'9' * 400}, -{'9' * 400}.5]", (4, 4), (8, 8)) == "[0, 0, 8, 0]"


def test_equal_sizes_change_nothing_the_second_time() -> None:
    once = rescale_boxes("a [1.5,2,  300, 4.5] b [7, 8, 9, 10]", (256, 256), (256, 256))
    assert once == "a [2, 2, 256, 4] b [7, 8, 9, 10]"
    assert rescale_boxes(once, (256, 256), (256, 256)) == once


def test_long_runs_of_digits_take_no_time() -> None:
    """A pattern that can split a number in two ways needs minutes for these."""
    text = "[" + "1" * 50_000 + " [1, 2, " + "2" * 50_000
    assert rescale_boxes(text, (4, 4), (8, 8)) == text
