"""Every edit: worded, read back, carried out, recognised."""

from __future__ import annotations

import re
from itertools import product

import pytest
from edit_samples import EVERY_KIND, edit_samples

from shapes.edits import COMPLEX, SIMPLE, SceneEdit, parse
from shapes.edits.complex import Both
from shapes.edits.simple import Add, Remove
from shapes.scene import SLOTS, Scene, Shape


@EVERY_KIND
def test_every_wording_parses_to_the_same_edit(kind: type[SceneEdit]) -> None:
    """A wording that another kind's pattern takes first would be judged as that other edit."""
    for sample in edit_samples(kind, 60):
        if isinstance(sample.edit, Both):
            one, two = sample.edit.first, sample.edit.second
            parts = product(one.wordings, Both.joints, two.wordings)
            texts = [a.format(**vars(one)) + joint + b.format(**vars(two)) for a, joint, b in parts]
        else:
            texts = [wording.format(**vars(sample.edit)) for wording in kind.wordings]
        assert sample.instruction in texts
        for text in texts:
            assert parse(text) == sample.edit
            assert parse(f"  {text.upper()} ") == sample.edit, "case and spaces carry no meaning"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "make her walk away from the table",
        "make the pink circle red",
        "remove the red circle please",
        "remove the red circle and",
        "add a red circle and make the background",
        "add a red circle or remove the blue square",
    ],
)
def test_other_texts_are_no_edit(text: str) -> None:
    """Half understood is not understood: the judge would score something that nobody asked for."""
    assert parse(text) is None


@EVERY_KIND
def test_the_edited_scene_has_all_of_the_edit_and_the_source_has_none(kind: type[SceneEdit]) -> None:
    """Also guards that "remove ... and add ..." does not put the new thing where the old one has to be gone."""
    for sample in edit_samples(kind, 300):
        assert sample.edit.success(sample.before, sample.after) == 1
        assert sample.edit.success(sample.before, sample.before) == 0


@EVERY_KIND
def test_an_edit_touches_what_it_changes_and_nothing_else(kind: type[SceneEdit]) -> None:
    for sample in edit_samples(kind, 300):
        pairs = enumerate(zip(sample.before.slots, sample.after.slots, strict=True))
        changed = {slot for slot, (old, new) in pairs if old != new}
        assert changed == sample.edit.touched(sample.before, sample.after)
        assert sample.after.background == sample.edit.background_after(sample.before)


def test_removing_and_adding_leaves_the_old_place_empty() -> None:
    """With one free slot left the bug of the order would show in every scene."""
    shapes = [
        Shape(colour, form) for colour, form in product(["red", "green", "blue"], ["circle", "square", "triangle"])
    ]
    scene = Scene("white", (*shapes[: SLOTS - 1], None))
    edit = Both(Remove(*shapes[0].name), Add("yellow", "circle"))
    after = edit.apply(scene, next(edit_samples(Both, 1)).rng)
    assert after.slots[0] is None
    assert edit.success(scene, after) == 1


def test_an_edit_of_something_that_is_not_there_is_refused() -> None:
    edit = parse("remove the red circle")
    assert edit is not None
    empty = Scene("gray", (None,) * SLOTS)
    with pytest.raises(LookupError, match="no red circle"):
        edit.success(empty, empty)


def test_kinds_have_names_of_their_own_and_belong_to_one_family() -> None:
    assert len({kind.kind for kind in (*SIMPLE, *COMPLEX)}) == len(SIMPLE) + len(COMPLEX)
    assert not any(kind.complex for kind in SIMPLE)
    assert all(kind.complex for kind in COMPLEX)
    assert all(re.fullmatch(r"[a-z {}_,]+", wording) for kind in (*SIMPLE, *COMPLEX) for wording in kind.wordings)
