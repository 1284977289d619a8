"""Boxes of a chain of thought: found in its text, drawn on the picture that it speaks of.

A box is written `[left, top, right, bottom]`, in pixels of the fitted source picture or, with no number above 1, in
shares of its sides, as in the training data. Text of a model is not always so tidy: a box that is reversed, empty or
wholly outside the picture is passed over, one that sticks out is cut to the picture. No framework is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from emu3.train_image_editing.boxes import BOX

# Far apart from each other, and readable as marks on a page, dark or light.
COLOURS = ("#e6194b", "#4363d8", "#f58231", "#911eb4", "#3cb44b", "#008f8f")


@dataclass(frozen=True)
class Box:
    """A box in pixels, inside its picture, and where its text stands: `text[start:end]`."""

    left: float
    top: float
    right: float
    bottom: float
    start: int
    end: int

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.right, self.bottom


def find_boxes(text: str, width: int, height: int) -> list[Box]:
    """The boxes in `text` that lie in a picture of width x height pixels, in the order of the text."""
    boxes = []
    for match in BOX.finditer(text):
        numbers = [float(number) for number in match.groups()]
        units = (width, height) if max(map(abs, numbers)) <= 1 else (1, 1)
        left, top, right, bottom = (number * unit for number, unit in zip(numbers, units * 2, strict=True))
        corners = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
        if corners[0] < corners[2] and corners[1] < corners[3]:
            boxes.append(Box(*corners, *match.span()))
    return boxes


def colours_of(boxes: Sequence[Box]) -> list[str]:
    """A colour for each box; the same place has the same one, however often the text names it."""
    places = list(dict.fromkeys(box.corners for box in boxes))
    return [COLOURS[places.index(box.corners) % len(COLOURS)] for box in boxes]


def draw_boxes(picture: Image.Image, boxes: Sequence[Box], scale: int) -> Image.Image:
    """A copy of `picture` with frames in the boxes' colours; it is `scale` times as large as what the boxes count."""
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    line = max(2, max(drawn.size) // 128)
    for box, colour in zip(boxes, colours_of(boxes), strict=True):
        left, top, right, bottom = (round(corner * scale) for corner in box.corners)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line)
    return drawn


def marked_text(text: str, boxes: Sequence[Box]) -> list[tuple[str, str | None]]:
    """`text` in pieces, each with its box's colour or None; together they are `text`."""
    pieces: list[tuple[str, str | None]] = []
    position = 0
    for box, colour in zip(boxes, colours_of(boxes), strict=True):
        pieces += [(text[position : box.start], None), (text[box.start : box.end], colour)]
        position = box.end
    return [(piece, colour) for piece, colour in [*pieces, (text[position:], None)] if piece]
