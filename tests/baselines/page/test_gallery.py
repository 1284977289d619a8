"""Boxes and points of a chain of thought, and what only looks like one."""

from __future__ import annotations

import pytest

from baselines.page.gallery import marks_in


@pytest.mark.parametrize(
    ("text", "boxes", "points"),
    [
        ("the cup [20, 10, 60, 30] is red", [(0.2, 0.2, 0.6, 0.6)], []),
        ("[20,10,60,30] and again [20, 10, 60, 30]", [(0.2, 0.2, 0.6, 0.6)], []),
        ("shares [0.1, 0.2, 0.5, 1]", [(0.1, 0.2, 0.5, 1.0)], []),
        ("from (50, 25) to [100, 50]", [], [(0.5, 0.5), (1.0, 1.0)]),
        ("upside down [60, 30, 20, 10]", [], []),
        ("outside [20, 10, 160, 30] and (101, 2)", [], []),
        ("left of it [-20, 10, 60, 30] and (-1, 2)", [], []),
        ("no area [20, 10, 20, 30]", [], []),
        ("a list [1, 2, 3] and [1, 2, 3, 4, 5] and (see 3, 4)", [], []),
        ("no numbers [a, b, c, d] ()", [], []),
    ],
)
def test_marks(text: str, boxes: list[tuple[float, ...]], points: list[tuple[float, ...]]) -> None:
    """Guards against a box in the wrong place (x and y swapped), twice, or where the text has none."""
    marks = marks_in(text, (100, 50))
    assert (marks.boxes, marks.points) == (boxes, points)
