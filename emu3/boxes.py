"""Boxes in chains of thought: found in their text, moved to a resized image, drawn on the image that they speak of.

The published texts write a box of the source image as `[left, top, right, bottom]` in its pixels. The published
pipeline multiplies it by the resized over the original side, rounds, and writes `[a, b, c, d]`. So does this, and then
clamps to the part of the image that has codes, whole cells: published boxes can lie outside it. Four numbers of which
none is above 1 are shares of the sides and stay as they are (published: rounded to 0 and 1).

Text of a model is not always so tidy: a box that is reversed, empty or wholly outside the image is not drawn, one that
sticks out is cut to the image. Left out: other ways to write a box, and lists of four numbers that are none, which look
the same. No framework is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]*)?)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")

# Far apart from each other, and readable as marks on a page, dark or light.
COLOURS = ("#e6194b", "#4363d8", "#f58231", "#911eb4", "#3cb44b", "#008f8f")


@dataclass(frozen=True)
class Box:
    """A box in pixels, inside its image, and where its text stands: `text[start:end]`."""

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
    """The boxes in `text` that lie in an image of width x height pixels, in the order of the text."""
    boxes = []
    for match in BOX.finditer(text):
        numbers = [float(number) for number in match.groups()]
        units = (width, height) if max(map(abs, numbers)) <= 1 else (1, 1)
        left, top, right, bottom = (number * unit for number, unit in zip(numbers, units * 2, strict=True))
        corners = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
        if corners[0] < corners[2] and corners[1] < corners[3]:
            boxes.append(Box(*corners, *match.span()))
    return boxes


def rescale_boxes(
    text: str, old_size: tuple[int, int], new_size: tuple[int, int], kept_size: tuple[int, int] | None = None
) -> str:
    """`text` with every box in pixels of an image of `old_size` in those of the resized one, as integers.

    old_size, new_size: (width, height) before and after resizing. kept_size: (width, height) of what of it is kept,
    without a margin at the right and the bottom, default `new_size`; boxes end there. Boxes inside longer lists and
    texts are found; lists of more or fewer than four numbers are not boxes. Equal sizes change only the way a box is
    written.
    """
    scales = [new / old for new, old in zip(new_size, old_size, strict=True)] * 2
    limits = [*(kept_size or new_size)] * 2

    def rescaled(match: re.Match[str]) -> str:
        box = [float(number) for number in match.groups()]
        if all(abs(number) <= 1 for number in box):
            return match.group()
        # Clamped before rounding: a number of hundreds of digits is infinite, which has no integer.
        bounded = [min(max(x * scale, 0), limit) for x, scale, limit in zip(box, scales, limits, strict=True)]
        return str([round(x) for x in bounded])

    return BOX.sub(rescaled, text)


def colours_of(boxes: Sequence[Box]) -> list[str]:
    """A colour for each box; the same place has the same one, however often the text names it."""
    places = list(dict.fromkeys(box.corners for box in boxes))
    return [COLOURS[places.index(box.corners) % len(COLOURS)] for box in boxes]


def draw_boxes(image: Image.Image, boxes: Sequence[Box], scale: int) -> Image.Image:
    """A copy of `image` with frames in the boxes' colours; it is `scale` times as large as what the boxes count."""
    drawn = image.copy()
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
