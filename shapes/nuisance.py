"""Targets that show more than the edit: what video frames and simulator pairs do to training data.

In the paper's complex sets the second picture differs from the first in things nobody asked for. Here a target gets,
with probability `share`, `strength` unrelated changes: something that the edit does not concern moves, changes its
colour, or disappears.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shapes.edits import Edit
from shapes.scene import COLOURS, Scene


def disturb(edit: Edit, before: Scene, after: Scene, rng: np.random.Generator, strength: int) -> Scene:
    """`after` with up to `strength` unrelated changes; fewer where the scene has nothing left to change."""
    touched = edit.touched(before, after)
    bystanders = [slot for slot in after.filled() if slot not in touched]
    for slot in rng.permutation(bystanders)[:strength]:
        after = _change(after, int(slot), rng)
    return after


def _change(scene: Scene, slot: int, rng: np.random.Generator) -> Scene:
    shape = scene.slots[slot]
    assert shape is not None
    what = rng.integers(3)
    if what == 0 and scene.free():
        return scene.put(slot, None).put(int(rng.choice(scene.free())), shape)
    if what == 1:
        return scene.put(slot, replace(shape, colour=str(rng.choice([c for c in COLOURS if c != shape.colour]))))
    return scene.put(slot, None)
