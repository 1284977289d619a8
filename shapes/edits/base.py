"""What an edit is: how it is worded, chosen, carried out and recognised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from shapes.scene import Scene, Shape


class SceneEdit(ABC):
    """One edit. `complex` says to which of the paper's two families it belongs; `kind` names it in tables.

    A wording holds its fields in braces: the same wordings write instructions and read them. Of `other_wordings` the
    training data has none.
    """

    kind: ClassVar[str]
    complex: ClassVar[bool] = False
    wordings: ClassVar[tuple[str, ...]] = ()
    other_wordings: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    @abstractmethod
    def choose(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
        """A random edit of this kind that suits the scene, or None if this draw found none."""

    @abstractmethod
    def apply(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """The scene after the edit. Raises LookupError if the scene lacks what the edit names."""

    @abstractmethod
    def success(self, before: Scene, after: Scene) -> float:
        """Share of what was asked for that is there, 0 to 1. An unchanged scene has 0."""

    @abstractmethod
    def touched(self, before: Scene, after: Scene) -> set[int]:
        """Slots that the edit may change."""

    def names(self) -> set[tuple[str, str]]:
        """(colour, form) of each thing that the instruction names."""
        words = vars(self)
        pairs = (("colour", "form"), ("other_colour", "other_form"))
        return {(words[colour], words[form]) for colour, form in pairs if colour in words and form in words}

    def worded(self, rng: np.random.Generator, *, other: bool = False) -> str:
        """A random wording of this edit; other: one that the training data does not have, where there is one."""
        wordings = self.other_wordings if other and self.other_wordings else self.wordings
        return str(rng.choice(wordings)).format(**vars(self))

    def source(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """What `scene`, which this edit was chosen for, is before the edit: itself, but for a restoration."""
        return scene

    def background_after(self, before: Scene) -> str:
        """The background that belongs to the edited scene."""
        return before.background


def random_edit(kinds: tuple[type[SceneEdit], ...], scene: Scene, rng: np.random.Generator) -> SceneEdit:
    """A random edit of one of `kinds` that suits the scene."""
    while True:
        edit = kinds[rng.integers(len(kinds))].choose(scene, rng)
        if edit is not None:
            return edit


def pick(scene: Scene, rng: np.random.Generator) -> Shape:
    """A random shape of the scene."""
    shape = scene.slots[int(rng.choice(scene.filled()))]
    assert shape is not None
    return shape


def named(scene: Scene, colour: str, form: str) -> tuple[int, Shape]:
    """Slot and shape of a name. Raises LookupError if the scene has none."""
    slot = scene.find(colour, form)
    shape = scene.slots[slot] if slot is not None else None
    if slot is None or shape is None:
        raise LookupError(f"there is no {colour} {form} in the scene")
    return slot, shape
