"""A chain of thought for an edit of the embedded world, in the five steps of the paper's chains (Section 4.1)."""

from __future__ import annotations

from shapes.edits import Edit
from shapes.scene import COLUMNS, TILE, Scene, Shape


def reasoning(edit: Edit, instruction: str, before: Scene, after: Scene) -> str:
    """What is there, what to edit, where, the change, and the result. Boxes are x0, y0, x1, y1 in pixels."""
    slots = sorted(edit.touched(before, after))
    objects = [shape for slot in slots if (shape := before.slots[slot])]
    boxes = ", ".join(_box(slot) for slot in slots) or "the whole picture"
    return (
        f"1. {_describe(before)} 2. Edit {_list(objects) if objects else 'the scene'}. 3. At {boxes}. "
        f"4. {instruction.capitalize()}. 5. {_describe(after)}"
    )


def _describe(scene: Scene) -> str:
    return f"{_list([shape for shape in scene.slots if shape])} on {scene.background}."


def _list(shapes: list[Shape]) -> str:
    return ", ".join(f"{shape.size} {shape.colour} {shape.form}" for shape in shapes) or "nothing"


def _box(slot: int) -> str:
    top, left = slot // COLUMNS * TILE, slot % COLUMNS * TILE
    return f"[{left}, {top}, {left + TILE}, {top + TILE}]"
