"""Edits that the training data has none of, or a share that is asked for.

A new thing at a named place; a move by itself; several steps; restorations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import numpy as np

from shapes.edits.base import SceneEdit, named, pick
from shapes.edits.complex import SIDES, Both, Move, Swap, beside, holds
from shapes.edits.simple import Add, Background, Recolour, Remove, Reshape
from shapes.scene import FLAWS, SIZES, Scene, Shape

WAYS = {"left": "left of", "right": "right of", "up": "above", "down": "below"}
"""The side of its old place to which a thing moves."""
RESIDUE = 0.15
"""Strength up to which a flaw counts as gone: a tokenizer's own errors are no more."""


@dataclass(frozen=True)
class Beside(SceneEdit):
    """A new thing on one side of another."""

    colour: str
    form: str
    side: str
    other_colour: str
    other_form: str
    kind: ClassVar[str] = "beside"
    complex: ClassVar[bool] = True
    wordings: ClassVar[tuple[str, ...]] = (
        "add a {colour} {form} {side} the {other_colour} {other_form}",
        "put a {colour} {form} {side} the {other_colour} {other_form}",
        "draw a {colour} {form} {side} the {other_colour} {other_form}",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Beside | None:
        new, anchor, side = Add.choose(scene, rng), pick(scene, rng), str(rng.choice(list(SIDES)))
        if new is None or beside(named(scene, *anchor.name)[0], side) not in scene.free():
            return None
        return Beside(new.colour, new.form, side, *anchor.name)

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        goal = beside(named(scene, self.other_colour, self.other_form)[0], self.side)
        assert goal is not None
        return scene.put(goal, Shape(self.colour, self.form, str(rng.choice(list(SIZES)))))

    def success(self, before: Scene, after: Scene) -> float:
        """Half of what it is for `Add`, and the other half for a right thing on the asked side."""
        anchor = named(before, self.other_colour, self.other_form)[0]
        placed = any(holds(slot, self.side, anchor) for slot in self.touched(before, after))
        added = self._plain.success(before, after)
        return (added + placed) / 2 if added == 1 else added / 2

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return self._plain.touched(before, after)

    @property
    def _plain(self) -> Add:
        return Add(self.colour, self.form)


@dataclass(frozen=True)
class Shift(SceneEdit):
    """One thing moves to the next slot."""

    colour: str
    form: str
    way: str
    kind: ClassVar[str] = "move"
    complex: ClassVar[bool] = True
    wordings: ClassVar[tuple[str, ...]] = (
        "move the {colour} {form} {way}",
        "put the {colour} {form} one place further {way}",
        "let the {colour} {form} move {way}",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Shift | None:
        options = [(slot, way) for slot in scene.filled() for way in WAYS if beside(slot, WAYS[way]) in scene.free()]
        if not options:
            return None
        slot, way = options[rng.integers(len(options))]
        shape = scene.slots[slot]
        assert shape is not None
        return Shift(*shape.name, way)

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        slot, shape = named(scene, self.colour, self.form)
        goal = beside(slot, WAYS[self.way])
        if goal is None:
            raise LookupError(f"there is no place further {self.way} than the {self.colour} {self.form}")
        return scene.put(slot, None).put(goal, shape)

    def success(self, before: Scene, after: Scene) -> float:
        """Half for a thing that left its place and stands elsewhere, all if it stands where it was to go."""
        slot, old = named(before, self.colour, self.form)
        places = [i for i in before.free() if after.slots[i] == old]
        if after.slots[slot] is not None or len(places) != 1:
            return 0.0
        return 1.0 if places[0] == beside(slot, WAYS[self.way]) else 0.5

    def touched(self, before: Scene, after: Scene) -> set[int]:
        slot, old = named(before, self.colour, self.form)
        return {slot, *[i for i in before.free() if after.slots[i] == old]}


class Steps(Both):
    """A move, then one or two edits of other things. Read back from its words, it is `Both`, with the same `steps`."""

    kind: ClassVar[str] = "steps"
    moves: ClassVar[tuple[type[SceneEdit], ...]] = (Shift, Move, Swap)
    others: ClassVar[tuple[type[SceneEdit], ...]] = (Recolour, Reshape, Remove, Background)

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Steps | None:
        """Edits none of which names or touches what another does."""
        move = Steps.moves[rng.integers(len(Steps.moves))]
        others = rng.permutation(len(Steps.others))[: rng.integers(1, 3)]
        edits: list[SceneEdit] = []
        names: set[tuple[str, str]] = set()
        slots: set[int] = set()
        for kind in (move, *(Steps.others[i] for i in others)):
            edit = kind.choose(scene, rng)
            if edit is None or edit.names() & names or (touched := edit.touched(scene, edit.apply(scene, rng))) & slots:
                return None
            edits.append(edit)
            names |= edit.names()
            slots |= touched
        first, *rest = edits
        return reduce(Steps, rest[1:], Steps(first, rest[0]))


@dataclass(frozen=True)
class Restore(SceneEdit):
    """A bad photograph becomes a good one. The scene stays as it is."""

    flaw: str
    kind: ClassVar[str] = "restoration"
    wordings: ClassVar[tuple[str, ...]] = (
        "remove the {flaw}",
        "take away the {flaw}",
        "clean the picture of {flaw}",
        "the picture should have no {flaw}",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Restore | None:
        return Restore(str(rng.choice(FLAWS)))

    def source(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return replace(scene, flaw=self.flaw, strength=float(rng.uniform(0.6, 0.95)))

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return replace(scene, flaw="", strength=0.0)

    def success(self, before: Scene, after: Scene) -> float:
        """Share of the flaw that is gone."""
        if before.flaw != self.flaw or before.strength <= RESIDUE:
            raise LookupError(f"there is no {self.flaw} in the picture")
        left = max(0.0, after.strength - RESIDUE) if after.flaw == self.flaw else 0.0
        return max(0.0, 1 - left / (before.strength - RESIDUE))

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return set()


OTHER: tuple[type[SceneEdit], ...] = (Beside, Shift, Restore)
"""Steps are not among them: their words are read part by part."""
