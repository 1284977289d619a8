"""Boxes and points in a chain of thought, as places in the picture that it speaks about.

A box is written `[x1, y1, x2, y2]`, a point `(x, y)` or `[x, y]`, in pixels of the source as the model saw it, x to the
right and y down; numbers of which none is above 1 are shares of the sides. What does not lie in the picture is not
drawn: other lists of two or four numbers look the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from emu3.boxes import BOX, NUMBER

_POINT = re.compile(rf"[(\[]{NUMBER},{NUMBER}[)\]]")


@dataclass(frozen=True)
class Marks:
    """Shares of width and height, 0 to 1: boxes (left, top, right, bottom), points (x, y); each once, in order."""

    boxes: list[tuple[float, ...]]
    points: list[tuple[float, ...]]


def marks_in(text: str, size: tuple[int, int]) -> Marks:
    """The marks in `text` about a picture of `size` (width, height) pixels."""
    boxes = [box for box in _shares(BOX, text, size) if box[0] < box[2] and box[1] < box[3]]
    return Marks(boxes, _shares(_POINT, text, size))


def _shares(pattern: re.Pattern[str], text: str, size: tuple[int, int]) -> list[tuple[float, ...]]:
    found: dict[tuple[float, ...], None] = {}
    for match in pattern.finditer(text):
        numbers = [float(number) for number in match.groups()]
        if any(number > 1 for number in numbers):
            numbers = [number / size[place % 2] for place, number in enumerate(numbers)]
        if all(0 <= number <= 1 for number in numbers):
            found[tuple(round(number, 4) for number in numbers)] = None
    return list(found)
