"""The reader has to see what was drawn, or no score of this world means anything."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from shapes.reader import has_flaw, read
from shapes.scene import BACKGROUNDS, COLOURS, FLAWS, FORMS, SIZES, SLOTS, Scene, Shape, grain, photograph, random_scene

KINDS = [Shape(*kind) for kind in product(COLOURS, FORMS, SIZES)]


def test_every_shape_is_read_back_on_every_background_and_in_every_slot() -> None:
    """A palette or a stencil too close to another would make one kind of edit unlearnable, unseen."""
    rng = np.random.default_rng(0)
    for background, turn in product(BACKGROUNDS, range(len(KINDS))):
        scene = Scene(background, tuple(KINDS[(turn + slot) % len(KINDS)] for slot in range(SLOTS)))
        reading = read(Image.fromarray(photograph(scene, grain(rng))))
        assert reading.scene == scene
        assert reading.wrong == 0
        assert min(reading.overlap.values()) == 1


def test_random_scenes_are_read_back_through_their_noise() -> None:
    for seed in range(300):
        rng = np.random.default_rng([1, seed])
        scene = random_scene(rng, (0, SLOTS))
        assert read(Image.fromarray(photograph(scene, grain(rng)))).scene == scene


@pytest.mark.parametrize("flaw", FLAWS)
def test_scenes_are_read_through_their_flaws_and_clean_ones_have_none(flaw: str) -> None:
    """A source that is misread makes a right restoration an overedited one."""
    for seed in range(60):
        rng = np.random.default_rng([4, seed])
        scene, noise, strength = random_scene(rng), grain(rng), rng.uniform(0.6, 0.95)
        spoiled = Image.fromarray(photograph(replace(scene, flaw=flaw, strength=strength), noise))
        clean = Image.fromarray(photograph(scene, noise))
        for image, expected in ((spoiled, strength), (clean, 0)):
            found = read(image, flaw).scene
            assert (found.background, found.slots, found.flaw) == (scene.background, scene.slots, flaw)
            assert found.strength == pytest.approx(expected, abs=0.4 if flaw == "noise" else 0.02)
        assert not has_flaw(clean, flaw)
        assert has_flaw(spoiled, flaw) or flaw == "darkness", "in the dark, a plain reading sees another scene"


def test_an_image_of_another_size_is_read_at_the_scenes_size() -> None:
    """A judge gets what the editor made, which need not have 48x32 pixels."""
    rng = np.random.default_rng(2)
    scene = random_scene(rng)
    image = Image.fromarray(photograph(scene, grain(rng)))
    assert read(image.resize((144, 144), Image.Resampling.NEAREST)).scene == scene


def test_pixels_that_no_scene_explains_are_counted() -> None:
    scene = Scene("white", (Shape("red", "circle"),) + (None,) * (SLOTS - 1))
    pixels = photograph(scene, np.zeros(()))
    pixels[20:32, 20:32] = (0, 255, 255)
    assert 0.09 < read(Image.fromarray(pixels)).wrong < 0.11  # 144 of 1536 pixels, and what they are mistaken for


def test_things_in_a_source_scene_have_names_of_their_own() -> None:
    """ "The red circle" has to name one thing, or a right answer could be scored wrong."""
    for seed in range(200):
        scene = random_scene(np.random.default_rng([3, seed]), (2, SLOTS))
        names = [shape.name for shape in scene.slots if shape]
        assert len(set(names)) == len(names)
