"""Boxes in reasoning texts, moved to the picture that the model sees.

The published texts write a box of the source picture as `[x1, y1, x2, y2]` in its pixels, x to the right, y down, and
the published pipeline multiplies it by the resized over the original side, rounds, and writes `[a, b, c, d]`. So does
this, and then clamps to the part of the picture that has codes, whole cells: published boxes can lie outside it.
Four numbers of which none is above 1 are shares of the sides and stay as they are (published: rounded to 0 and 1).
Left out: other ways to write a box, and lists of four numbers that are none, which look the same.
"""

from __future__ import annotations

import re

NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]*)?)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")


def rescale_boxes(
    text: str, old_size: tuple[int, int], new_size: tuple[int, int], kept_size: tuple[int, int] | None = None
) -> str:
    """`text` with every box in pixels of a picture of `old_size` in those of the resized one, as integers.

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
