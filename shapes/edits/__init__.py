"""The edits of the embedded world.

Simple edits change one thing (colour, form, presence, background). Complex ones need counting, a spatial relation,
or several things at once. Others occur in benchmarks, restorations also in training data if a share is asked for. A
judge needs nothing but the words: `parse` reads what `SceneEdit.worded` writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np

from shapes.edits.base import SceneEdit, random_edit
from shapes.edits.complex import COMPLEX, NUMBERS, SIDES, Both
from shapes.edits.other import OTHER, WAYS
from shapes.edits.simple import SIMPLE
from shapes.scene import BACKGROUNDS, COLOURS, FLAWS, FORMS

__all__ = ["COMPLEX", "SIMPLE", "SceneEdit", "in_peoples_words", "parse", "random_edit"]

COURTESIES = ("please ", "can you ", "now ", "i want you to ", "first of all, ")

_WORDS = {
    "colour": COLOURS,
    "form": FORMS,
    "other_colour": COLOURS,
    "other_form": FORMS,
    "background": BACKGROUNDS,
    "number": NUMBERS,
    "side": SIDES,
    "way": WAYS,
    "flaw": FLAWS,
}


def parse(instruction: str) -> SceneEdit | None:
    """The edit that an instruction of this world asks for, or None if it is none of its wordings."""
    text = " ".join(instruction.lower().split())
    for courtesy in COURTESIES:
        text = text.removeprefix(courtesy)
    for kind in (*SIMPLE, *COMPLEX, *OTHER):
        for pattern in _patterns(kind):
            if match := pattern.fullmatch(text):
                build: Callable[..., SceneEdit] = kind
                return build(**match.groupdict())
    for joint in Both.joints:
        for position in re.finditer(re.escape(joint), text):
            first, second = parse(text[: position.start()]), parse(text[position.end() :])
            if first and second:
                return Both(first, second)
    return None


@cache
def _patterns(kind: type[SceneEdit]) -> list[re.Pattern[str]]:
    """The wordings of a kind as regular expressions with one named group per field."""
    return [
        re.compile(re.sub(r"\{(\w+)\}", lambda hole: f"(?P<{hole[1]}>{'|'.join(_WORDS[hole[1]])})", wording))
        for wording in (*kind.wordings, *kind.other_wordings)
    ]


def in_peoples_words(instruction: str, rng: np.random.Generator) -> str:
    """An instruction as somebody would ask for it; those that are no commands stay as they are."""
    command = not instruction.startswith(("the ", "there ", "let ", *COLOURS, *BACKGROUNDS))
    return str(rng.choice(COURTESIES)) + instruction if command else instruction
