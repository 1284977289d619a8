"""Complex edits: counting, a spatial relation, two things at once, or several edits in one instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shapes.edits.base import SceneEdit, named, pick, random_edit
from shapes.edits.simple import SIMPLE, Add, Recolour, Remove, Reshape
from shapes.scene import COLUMNS, ROWS, Scene, Shape

NUMBERS = {"two": 2, "three": 3}
SIDES: dict[str, tuple[int, int]] = {  # (row step, column step) from the anchor
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (-1, 0),
    "below": (1, 0),
}


@dataclass(frozen=True)
class Count(SceneEdit):
    number: str
    colour: str
    form: str
    kind: ClassVar[str] = "count"
    complex: ClassVar[bool] = True
    wordings: ClassVar[tuple[str, ...]] = (
        "there should be {number} {colour} {form}s",
        "make it {number} {colour} {form}s",
        "show exactly {number} {colour} {form}s",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Count | None:
        return Count(str(rng.choice(list(NUMBERS))), *pick(scene, rng).name)

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        _, old = named(scene, self.colour, self.form)
        missing = NUMBERS[self.number] - scene.count(self.colour, self.form)
        for slot in rng.permutation(scene.free())[:missing]:
            scene = scene.put(int(slot), old)
        return scene

    def success(self, before: Scene, after: Scene) -> float:
        expected = NUMBERS[self.number]
        off_before = abs(expected - before.count(self.colour, self.form))
        off_after = abs(expected - after.count(self.colour, self.form))
        return max(0.0, 1 - off_after / off_before) if off_before else 0.0

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return {i for i in before.free() if (shape := after.slots[i]) and shape.name == (self.colour, self.form)}


@dataclass(frozen=True)
class Move(SceneEdit):
    colour: str
    form: str
    side: str
    other_colour: str
    other_form: str
    kind: ClassVar[str] = "relation"
    complex: ClassVar[bool] = True
    wordings: ClassVar[tuple[str, ...]] = (
        "move the {colour} {form} {side} the {other_colour} {other_form}",
        "put the {colour} {form} {side} the {other_colour} {other_form}",
        "place the {colour} {form} {side} the {other_colour} {other_form}",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Move | None:
        options = [
            (a, side, b)
            for a in scene.filled()
            for b in scene.filled()
            if a != b
            for side in SIDES
            if (goal := beside(b, side)) is not None and scene.slots[goal] is None and not holds(a, side, b)
        ]
        if not options:
            return None
        a, side, b = options[rng.integers(len(options))]
        mover, anchor = scene.slots[a], scene.slots[b]
        assert mover and anchor
        return Move(*mover.name, side, *anchor.name)

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        slot, shape = named(scene, self.colour, self.form)
        goal = beside(named(scene, self.other_colour, self.other_form)[0], self.side)
        assert goal is not None
        return scene.put(slot, None).put(goal, shape)

    def success(self, before: Scene, after: Scene) -> float:
        """Half for a thing that left its place and stands elsewhere, all if it stands on the asked side."""
        slot, old = named(before, self.colour, self.form)
        anchor = named(before, self.other_colour, self.other_form)[0]
        places = [i for i in before.free() if after.slots[i] == old]
        if after.slots[slot] is not None or len(places) != 1:
            return 0.0
        return 1.0 if holds(places[0], self.side, anchor) else 0.5

    def touched(self, before: Scene, after: Scene) -> set[int]:
        slot, old = named(before, self.colour, self.form)
        return {slot, *[i for i in before.free() if after.slots[i] == old]}


@dataclass(frozen=True)
class Swap(SceneEdit):
    colour: str
    form: str
    other_colour: str
    other_form: str
    kind: ClassVar[str] = "swap"
    complex: ClassVar[bool] = True
    wordings: ClassVar[tuple[str, ...]] = (
        "swap the {colour} {form} and the {other_colour} {other_form}",
        "exchange the {colour} {form} and the {other_colour} {other_form}",
        "let the {colour} {form} and the {other_colour} {other_form} trade places",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Swap | None:
        first, second = (scene.slots[i] for i in rng.permutation(scene.filled())[:2])
        assert first and second
        return Swap(*first.name, *second.name)

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        (a, first), (b, second) = self._pair(scene)
        return scene.put(a, second).put(b, first)

    def success(self, before: Scene, after: Scene) -> float:
        (a, first), (b, second) = self._pair(before)
        return ((after.slots[a] == second) + (after.slots[b] == first)) / 2

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return {slot for slot, _ in self._pair(before)}

    def _pair(self, scene: Scene) -> tuple[tuple[int, Shape], tuple[int, Shape]]:
        return named(scene, self.colour, self.form), named(scene, self.other_colour, self.other_form)


@dataclass(frozen=True)
class Both(SceneEdit):
    """Two simple edits of different things in one instruction; or more edits, if `first` or `second` is such a pair."""

    first: SceneEdit
    second: SceneEdit
    kind: ClassVar[str] = "multi"
    complex: ClassVar[bool] = True
    joints: ClassVar[tuple[str, ...]] = (" and ", ", then ")

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Both | None:
        first = random_edit(SIMPLE, scene, rng)
        after = first.apply(scene, rng)
        second = random_edit(tuple(kind for kind in SIMPLE if kind is not type(first)), scene, rng)
        if first.touched(scene, after) & second.touched(scene, second.apply(scene, rng)):
            return None
        if isinstance(second, Recolour | Reshape | Remove) and after.count(second.colour, second.form) > 1:
            return None
        return Both(first, second)

    @property
    def steps(self) -> tuple[SceneEdit, ...]:
        """The edits themselves, in the order of the words."""
        pairs = ((edit.steps if isinstance(edit, Both) else (edit,)) for edit in (self.first, self.second))
        return tuple(step for steps in pairs for step in steps)

    def names(self) -> set[tuple[str, str]]:
        return self.first.names() | self.second.names()

    def worded(self, rng: np.random.Generator, *, other: bool = False) -> str:
        first = self.first.worded(rng, other=other)
        return first + str(rng.choice(self.joints)) + self.second.worded(rng, other=other)

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        # What is added comes first: it must not take the place of what the other edit removes.
        for edit in sorted((self.first, self.second), key=lambda edit: not isinstance(edit, Add)):
            scene = edit.apply(scene, rng)
        return scene

    def success(self, before: Scene, after: Scene) -> float:
        return sum(step.success(before, after) for step in self.steps) / len(self.steps)

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return self.first.touched(before, after) | self.second.touched(before, after)

    def background_after(self, before: Scene) -> str:
        changed = self.first.background_after(before)
        return changed if changed != before.background else self.second.background_after(before)


COMPLEX: tuple[type[SceneEdit], ...] = (Count, Move, Swap, Both)


def beside(slot: int, side: str) -> int | None:
    """The slot next to `slot` on that side, or None outside the image."""
    row, column = slot // COLUMNS + SIDES[side][0], slot % COLUMNS + SIDES[side][1]
    return row * COLUMNS + column if 0 <= row < ROWS and 0 <= column < COLUMNS else None


def holds(slot: int, side: str, anchor: int) -> bool:
    """Whether `slot` lies on that side of `anchor`, in the same row or column."""
    down, right = slot // COLUMNS - anchor // COLUMNS, slot % COLUMNS - anchor % COLUMNS
    step_down, step_right = SIDES[side]
    return (down == 0 and right * step_right > 0) if step_right else (right == 0 and down * step_down > 0)
