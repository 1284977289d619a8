"""Nuisance changes: unrelated to the edit, and dear to a strict judge."""

from __future__ import annotations

from edit_samples import EVERY_KIND, edit_samples

from shapes.edits import COMPLEX, SceneEdit
from shapes.verifier import judge_edit
from shapes.write_data import disturb


@EVERY_KIND
def test_what_was_asked_for_stays_done_and_the_rest_costs(kind: type[SceneEdit]) -> None:
    """Guards two ways in which noise became a wrong label: a copy of the counted thing recoloured or removed, and a
    bystander that moved to the place which the edit had to leave empty."""
    for sample in edit_samples(kind, 150):
        target = disturb(sample.edit, sample.before, sample.after, sample.rng, 1)
        assert target != sample.after
        assert sample.edit.success(sample.before, target) == 1
        verdict = judge_edit(sample.instruction, sample.image(sample.before), sample.image(target))
        assert verdict.scores[0] == 10
        assert verdict.scores[1] <= 6


def test_the_things_that_an_instruction_names_stay_as_they_are() -> None:
    """An anchor that wanders off makes "left of the blue square" wrong to a person who looks at the pair."""
    for kind in COMPLEX:
        for sample in edit_samples(kind, 100):
            target = disturb(sample.edit, sample.before, sample.after, sample.rng, 9)
            for slot in sample.after.filled():
                shape = sample.after.slots[slot]
                if shape and shape.name in sample.edit.names():
                    assert target.slots[slot] == shape


def test_strength_zero_changes_nothing() -> None:
    for sample in edit_samples(COMPLEX[0], 20):
        assert disturb(sample.edit, sample.before, sample.after, sample.rng, 0) == sample.after


def test_more_strength_changes_more() -> None:
    lost = [0, 0]
    for sample in edit_samples(COMPLEX[0], 60):
        for index, strength in enumerate((1, 3)):
            target = disturb(sample.edit, sample.before, sample.after, sample.rng, strength)
            lost[index] += sum(old != new for old, new in zip(sample.after.slots, target.slots, strict=True))
    assert lost[1] > 1.5 * lost[0]
