"""Simple edits: one thing changes its colour or form, comes or goes, or the background changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from shapes.edits.base import SceneEdit, named, pick
from shapes.scene import BACKGROUNDS, COLOURS, FORMS, SIZES, Scene, Shape, random_shape


@dataclass(frozen=True)
class Recolour(SceneEdit):
    colour: str
    form: str
    other_colour: str
    kind: ClassVar[str] = "colour"
    wordings: ClassVar[tuple[str, ...]] = (
        "make the {colour} {form} {other_colour}",
        "paint the {colour} {form} {other_colour}",
        "change the color of the {colour} {form} to {other_colour}",
        "the {colour} {form} should be {other_colour}",
    )
    other_wordings: ClassVar[tuple[str, ...]] = (
        "turn the {colour} {form} {other_colour}",
        "set the color of the {colour} {form} to {other_colour}",
        "the color of the {colour} {form} should become {other_colour}",
        "{other_colour} should be the color of the {colour} {form}",
        "let the {form} that is {colour} become {other_colour}",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Recolour | None:
        colour, form = pick(scene, rng).name
        free = [other for other in COLOURS if scene.find(other, form) is None]
        return Recolour(colour, form, str(rng.choice(free))) if free else None

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        slot, old = named(scene, self.colour, self.form)
        return scene.put(slot, replace(old, colour=self.other_colour))

    def success(self, before: Scene, after: Scene) -> float:
        slot, old = named(before, self.colour, self.form)
        new = after.slots[slot]
        if new is None or new.colour != self.other_colour:
            return 0.0
        return (1.0 + (new.form == self.form) + (new.size == old.size)) / 3

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return {named(before, self.colour, self.form)[0]}


@dataclass(frozen=True)
class Reshape(SceneEdit):
    colour: str
    form: str
    other_form: str
    kind: ClassVar[str] = "shape"
    wordings: ClassVar[tuple[str, ...]] = (
        "turn the {colour} {form} into a {other_form}",
        "replace the {colour} {form} with a {other_form}",
        "change the {colour} {form} to a {other_form}",
        "the {colour} {form} should become a {other_form}",
    )
    other_wordings: ClassVar[tuple[str, ...]] = (
        "make the {colour} {form} a {other_form}",
        "the {colour} {form} should be a {other_form}",
        "exchange the {colour} {form} with a {other_form}",
        "put a {other_form} in place of the {colour} {form}",
        "let the {form} that is {colour} become a {other_form}",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Reshape | None:
        colour, form = pick(scene, rng).name
        free = [other for other in FORMS if scene.find(colour, other) is None]
        return Reshape(colour, form, str(rng.choice(free))) if free else None

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        slot, old = named(scene, self.colour, self.form)
        return scene.put(slot, replace(old, form=self.other_form))

    def success(self, before: Scene, after: Scene) -> float:
        slot, old = named(before, self.colour, self.form)
        new = after.slots[slot]
        if new is None or new.form != self.other_form:
            return 0.0
        return (1.0 + (new.colour == self.colour) + (new.size == old.size)) / 3

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return {named(before, self.colour, self.form)[0]}


@dataclass(frozen=True)
class Add(SceneEdit):
    colour: str
    form: str
    kind: ClassVar[str] = "add"
    wordings: ClassVar[tuple[str, ...]] = (
        "add a {colour} {form}",
        "put a {colour} {form} in the picture",
        "draw a {colour} {form}",
        "insert a {colour} {form}",
    )
    other_wordings: ClassVar[tuple[str, ...]] = (
        "place a {colour} {form} in the picture",
        "there should be a {colour} {form}",
        "show a {colour} {form}",
        "in the picture, draw a {colour} {form}",
        "the picture should show a {form} that is {colour}",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Add | None:
        taken = {shape.name for shape in scene.slots if shape}
        return Add(*random_shape(rng, taken=taken).name) if scene.free() else None

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        size = str(rng.choice(list(SIZES)))
        return scene.put(int(rng.choice(scene.free())), Shape(self.colour, self.form, size))

    def success(self, before: Scene, after: Scene) -> float:
        added = self._added(before, after)
        return max(((s.colour == self.colour) + (s.form == self.form)) / 2 for s in added) if added else 0.0

    def touched(self, before: Scene, after: Scene) -> set[int]:
        """The one added slot that fits best; a second added thing is one too many."""
        slots = [i for i in before.free() if after.slots[i] is not None]
        fits = [i for i in slots if (shape := after.slots[i]) and shape.name == (self.colour, self.form)]
        return set((fits or slots)[:1])

    @staticmethod
    def _added(before: Scene, after: Scene) -> list[Shape]:
        return [shape for i in before.free() if (shape := after.slots[i]) is not None]


@dataclass(frozen=True)
class Remove(SceneEdit):
    colour: str
    form: str
    kind: ClassVar[str] = "remove"
    wordings: ClassVar[tuple[str, ...]] = (
        "remove the {colour} {form}",
        "delete the {colour} {form}",
        "erase the {colour} {form}",
        "take away the {colour} {form}",
    )
    other_wordings: ClassVar[tuple[str, ...]] = (
        "take the {colour} {form} away",
        "take the {colour} {form} out of the picture",
        "let the {colour} {form} go away",
        "there should be no {colour} {form}",
        "remove the {form} that is {colour}",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Remove | None:
        return Remove(*pick(scene, rng).name)

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return scene.put(named(scene, self.colour, self.form)[0], None)

    def success(self, before: Scene, after: Scene) -> float:
        return float(after.slots[named(before, self.colour, self.form)[0]] is None)

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return {named(before, self.colour, self.form)[0]}


@dataclass(frozen=True)
class Background(SceneEdit):
    background: str
    kind: ClassVar[str] = "background"
    wordings: ClassVar[tuple[str, ...]] = (
        "make the background {background}",
        "change the background to {background}",
        "set a {background} background",
        "the background should be {background}",
    )
    other_wordings: ClassVar[tuple[str, ...]] = (
        "paint the background {background}",
        "turn the background {background}",
        "put a {background} background in the picture",
        "let the background become {background}",
        "{background} should be the color of the background",
    )

    @staticmethod
    def choose(scene: Scene, rng: np.random.Generator) -> Background | None:
        return Background(str(rng.choice([tone for tone in BACKGROUNDS if tone != scene.background])))

    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return replace(scene, background=self.background)

    def success(self, before: Scene, after: Scene) -> float:
        return float(after.background == self.background)

    def touched(self, before: Scene, after: Scene) -> set[int]:
        return set()

    def background_after(self, before: Scene) -> str:
        return self.background


SIMPLE: tuple[type[SceneEdit], ...] = (Recolour, Reshape, Add, Remove, Background)
