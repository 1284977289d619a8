"""Boxes in chains of thought: they point at the same thing before and after the image is resized."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from emu3.boxes import COLOURS, colours_of, draw_boxes, find_boxes, marked_text, rescale_boxes

WIDTH, HEIGHT = 48, 32


def corners(text: str) -> list[tuple[float, float, float, float]]:
    return [box.corners for box in find_boxes(text, WIDTH, HEIGHT)]


def test_boxes_are_found_in_running_text() -> None:
    text = "2. Edit the circle. 3. At [0, 16, 16, 32], [16,0,32.5,16] and [ 1, 2, 3, 4 ]. 4. Done"
    assert corners(text) == [(0, 16, 16, 32), (16, 0, 32.5, 16), (1, 2, 3, 4)]
    assert [text[box.start : box.end] for box in find_boxes(text, WIDTH, HEIGHT)][1] == "[16,0,32.5,16]"


@pytest.mark.parametrize(
    "text",
    [
        "[16, 0, 0, 16]",  # reversed
        "[4, 4, 4, 9]",  # empty
        "[48, 0, 60, 9]",  # right of the image
        "[-9, -9, -1, -1]",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[a, b, c, d]",
        "[1, 2, 3, 4",
        "",
    ],
)
def test_what_is_no_box_of_the_image_is_passed_over(text: str) -> None:
    """Guards against a page that fails, or a frame in a wrong place, because a model wrote nonsense."""
    assert corners(text) == []


def test_boxes_are_cut_to_the_image() -> None:
    """Guards against frames outside the image, and numbers too long for a float."""
    assert corners(f"[-5, 10, 1{'0' * 400}, 99]") == [(0, 10, WIDTH, HEIGHT)]


def test_shares_of_the_sides_count_from_the_size() -> None:
    assert corners("[0, 0.5, 0.25, 1]") == [(0, 16, 12, 32)]


def test_a_place_has_one_colour() -> None:
    """Guards against a text whose second mention of a box has another colour than its frame."""
    boxes = find_boxes("[0, 0, 9, 9] [9, 0, 18, 9] [0,0,9,9]", WIDTH, HEIGHT)
    assert colours_of(boxes) == [COLOURS[0], COLOURS[1], COLOURS[0]]
    many = find_boxes(" ".join(f"[0, 0, 9, {n}]" for n in range(1, 20)), WIDTH, HEIGHT)
    assert colours_of(many)[len(COLOURS)] == COLOURS[0]


@pytest.mark.parametrize("text", ["", "no box", "[0, 0, 9, 9]", "a [0, 0, 9, 9][9, 9, 0, 0] [9, 0, 18, 9] z\nnew line"])
def test_the_pieces_are_the_text(text: str) -> None:
    boxes = find_boxes(text, WIDTH, HEIGHT)
    pieces = marked_text(text, boxes)
    assert "".join(piece for piece, _ in pieces) == text
    assert [colour for _, colour in pieces if colour] == colours_of(boxes)


@pytest.mark.parametrize(("left", "top"), [(32, 16), (16, 0), (3, 5)])
def test_frames_lie_inside_their_boxes(left: int, top: int) -> None:
    """Guards against an unscaled frame, one that covers its object or its neighbour, and one cut off at the edge."""
    scale = 10
    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale))
    drawn = draw_boxes(image, find_boxes(f"[{left}, {top}, {left + 16}, {top + 16}]", WIDTH, HEIGHT), scale)
    frame = np.asarray(drawn).max(axis=-1) > 0
    rows, columns = np.nonzero(frame)
    assert (columns.min(), columns.max()) == (left * scale, left * scale + 159)
    assert (rows.min(), rows.max()) == (top * scale, top * scale + 159)
    assert not frame[top * scale + 5 : top * scale + 155, left * scale + 5 : left * scale + 155].any()
    assert not np.asarray(image).any()


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
    """x and y swapped, or one scale for both, is right for square images only."""
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


def test_a_box_ends_where_the_image_does() -> None:
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
