"""The question for a chain of thought, and which replies are one: five numbered steps, boxes that lie in the image.

The five are the paper's (section 4.1): what is there, what to edit, where, the change, the result. The wording is our
own and gives no examples; the authors' has them, and hints such as the boxes of a detector, which are left out here.

Qwen2.5-VL counts a box in pixels of the image that its network gets, whose sides are multiples of 28. So it is sent
images of such sides, is told their size, and its boxes are taken back to the pixels of the dataset's image, where
tokenizing (`emu3.train_image_editing.prepare_data`) takes them from. Models that count otherwise, such as Qwen3-VL in
thousandths of the sides, are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import sqrt

from PIL import Image

from emu3.boxes import BOX, rescale_boxes
from emu3.mllm.sequence import reasoning_text
from emu3.train_image_editing.image_rows import ImageRow
from rl.reward.client import Judge
from rl.reward.scores import Unavailable

CELL = 28
"""Sides of an image that is sent are multiples of this."""

QUESTION = """\
Two pictures are attached. The first is the source of an edit, {width} pixels wide and {height} pixels high. The \
second is what the edit made of it.

Editing instruction: {instruction}

Somebody has nothing but the first picture and the instruction and is about to make the second one. Write down what \
that person has to think, as five numbered steps, each on a line of its own, and nothing else:

1. What the picture shows, above all what the instruction is about.
2. Which objects or parts have to be edited.
3. Where each of them is in the first picture, as a box [left, top, right, bottom] in its pixels; for an edit of the \
whole picture [0, 0, {width}, {height}].
4. What has to change about them, and what has to stay.
5. What the finished picture shows.

Write whole sentences, 200 words at most. Do not mention that there is a second picture: it has yet to be made."""

_STEP = re.compile(r"^\W*(?:step\s+)?([1-9])\s*[.):]\W*?(?=[\w\[(\"'])", re.IGNORECASE)

NO_STEPS, NO_BOX, TOO_LONG = "no five steps", "no box in step 3", "too long"
NO_TARGET, REFUSED, NO_REPLY = "no target picture", "the judge refused", "no answer"
"""Kinds of `NoChain`, as they stand in the notes of a run."""


@dataclass(frozen=True)
class NoChain:
    """Why a row has no chain of thought. kind: one of a few words to count by. detail: one line about this row."""

    kind: str
    detail: str


async def ask_for_chain(judge: Judge, row: ImageRow, area: int, key: str) -> str | NoChain:
    """The chain of thought of a row, boxes in pixels of its source, or why there is none.

    area: pixels of the images that the judge gets. key: column that the text is for.
    """
    if row.edited is None:
        return NoChain(NO_TARGET, "the edited image is empty")
    size, edited_size = sent_size(row.source.size, area), sent_size(row.edited.size, area)
    images = [
        row.source.resize(size, Image.Resampling.BICUBIC),
        row.edited.resize(edited_size, Image.Resampling.BICUBIC),
    ]

    def read(reply: str) -> str | NoChain:
        return chain_of_thought(reply, size, row.source.size, key)

    reply = await judge.ask(question(row.instruction, size), images, lambda reply: isinstance(read(reply), str))
    if isinstance(reply, Unavailable):
        return NoChain(REFUSED if reply.refused else NO_REPLY, reply.reason)
    return read(reply)


def question(instruction: str, size: tuple[int, int]) -> str:
    """The question about a pair whose source is sent at `size` (width, height)."""
    return QUESTION.format(width=size[0], height=size[1], instruction=" ".join(instruction.split()))


def sent_size(size: tuple[int, int], area: int) -> tuple[int, int]:
    """(width, height) at which an image is sent: sides in whole cells, about its own shape, near `area` pixels."""
    scale = sqrt(area / (size[0] * size[1]))
    width, height = (max(1, round(side * scale / CELL)) * CELL for side in size)
    return width, height


def chain_of_thought(reply: str, sent: tuple[int, int], original: tuple[int, int], key: str) -> str | NoChain:
    """The five steps of a reply on one line, `1. ... 2. ...`, boxes in pixels of the original image.

    sent, original: (width, height) of the image that the reply is about. key: column that the text is for; with it
    in front, as training has it, the text must not be so long that its end would be cut off there.
    """
    steps = _steps(reply)
    if steps is None:
        return NoChain(NO_STEPS, _start(reply))
    if not any(_is_box(match.groups(), sent) for match in BOX.finditer(steps[2])):
        return NoChain(NO_BOX, _start(steps[2]))
    text = " ".join(f"{number}. {rescale_boxes(step, sent, original)}" for number, step in enumerate(steps, start=1))
    if text not in (reasoning_text({key: text}, [key]) or ""):
        return NoChain(TOO_LONG, f"{len(text)} characters")
    return text


def _steps(reply: str) -> list[str] | None:
    """The texts of five steps, numbered 1 to 5 in this order; what stands before the first is passed over."""
    steps: list[list[str]] = []
    for line in reply.splitlines():
        if (match := _STEP.match(line)) is not None:
            if int(match[1]) != len(steps) + 1:
                return None
            steps.append([line[match.end() :]])
        elif steps:
            steps[-1].append(line)
    texts = [" ".join(" ".join(lines).replace("**", "").split()) for lines in steps]
    return texts if len(texts) == 5 and all(texts) else None


def _is_box(corners: tuple[str, ...], size: tuple[int, int]) -> bool:
    """Whether left, top, right and bottom have an area inside an image of `size`."""
    left, top, right, bottom = map(float, corners)
    return max(left, 0) < min(right, size[0]) and max(top, 0) < min(bottom, size[1])


def _start(text: str) -> str:
    return " ".join(text.split())[:200]
