"""The edits of the embedded world.

Simple edits change one thing (colour, form, presence, background). Complex ones need counting, a spatial relation,
or several things at once. A judge needs nothing but the words: `parse` reads what `SceneEdit.worded` writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from shapes.edits.base import SceneEdit, random_edit
from shapes.edits.complex import COMPLEX, NUMBERS, SIDES, Both
from shapes.edits.simple import SIMPLE
from shapes.scene import BACKGROUNDS, COLOURS, FORMS

__all__ = ["COMPLEX", "SIMPLE", "SceneEdit", "parse", "random_edit"]

_WORDS = {
    "colour": COLOURS,
    "form": FORMS,
    "other_colour": COLOURS,
    "other_form": FORMS,
    "background": BACKGROUNDS,
    "number": NUMBERS,
    "side": SIDES,
}


def parse(instruction: str) -> SceneEdit | None:
    """The edit that an instruction of this world asks for, or None if it is none of its wordings."""
    text = " ".join(instruction.lower().split())
    for kind in (*SIMPLE, *COMPLEX):
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
        for wording in kind.wordings
    ]
