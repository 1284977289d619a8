"""The verifier on images: what must score full, what must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edit_samples import EVERY_KIND, edit_samples
from PIL import Image, ImageFilter

from shapes.edits import COMPLEX, SceneEdit
from shapes.edits.simple import Recolour, Remove
from shapes.scene import BACKGROUNDS, SLOTS, grain, photograph, random_scene
from shapes.verifier import BACKGROUND_COST, SLOT_COST, judge_edit, judge_quality


@EVERY_KIND
def test_the_ground_truth_scores_full(kind: type[SceneEdit]) -> None:
    for sample in edit_samples(kind, 60):
        edited = sample.image(sample.after)
        edit, quality = judge_edit(sample.instruction, sample.image(sample.before), edited), judge_quality(edited)
        assert (*edit.scores, *quality.scores) == (10, 10, 10, 10), edit.reason


@EVERY_KIND
def test_a_copy_of_the_source_has_no_success(kind: type[SceneEdit]) -> None:
    """The cheapest way to please a judge that looks at overediting and quality is to do nothing."""
    for sample in edit_samples(kind, 60):
        source = sample.image(sample.before)
        verdict = judge_edit(sample.instruction, source, source)
        assert verdict.scores == (0, 10)


def test_garbage_has_no_quality() -> None:
    """Random codes decode to patches of palette colours; noise and smears are the other two ways to fail."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8))
    patches = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((48, 48), Image.Resampling.NEAREST)
    crowd = photograph(random_scene(rng, (SLOTS, SLOTS)), grain(rng))
    smear = Image.fromarray(crowd).filter(ImageFilter.GaussianBlur(4))
    for image in (noise, patches, smear):
        verdict = judge_quality(image)
        assert min(verdict.scores) == 0, verdict.reason


def test_each_other_thing_that_changed_costs() -> None:
    for sample in edit_samples(Recolour, 60):
        touched = sample.edit.touched(sample.before, sample.after)
        scene = sample.after
        for lost, slot in enumerate(sorted(set(scene.filled()) - touched), start=1):
            scene = scene.put(slot, None)
            verdict = judge_edit(sample.instruction, sample.image(sample.before), sample.image(scene))
            assert verdict.scores == (10, max(0, 10 - lost * SLOT_COST))


def test_a_background_that_changed_unasked_costs() -> None:
    for sample in edit_samples(Remove, 30):
        other = next(tone for tone in BACKGROUNDS if tone != sample.before.background)
        edited = sample.image(replace(sample.after, background=other))
        verdict = judge_edit(sample.instruction, sample.image(sample.before), edited)
        assert verdict.scores == (10, 10 - BACKGROUND_COST)


def test_half_of_a_double_edit_is_half_a_success() -> None:
    """A first step on the way has to be worth something, or RL on complex edits never gets a signal."""
    for sample in edit_samples(COMPLEX[-1], 30):
        half = sample.edit.first.apply(sample.before, sample.rng)  # type: ignore[attr-defined]
        assert judge_edit(sample.instruction, sample.image(sample.before), sample.image(half)).scores[0] == 5


@pytest.mark.parametrize("instruction", ["Make them stand up", "remove the yellow square"])
def test_an_instruction_that_does_not_fit_is_refused(instruction: str) -> None:
    """A score for an edit that cannot be judged would be made up."""
    sample = next(s for s in edit_samples(Remove, 50) if s.before.find("yellow", "square") is None)
    source = sample.image(sample.before)
    with pytest.raises(ValueError, match=r"no edit of this world|there is no yellow square"):
        judge_edit(instruction, source, source)
