"""Edits of random scenes, the same in every test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from shapes.edits import COMPLEX, SIMPLE, SceneEdit
from shapes.scene import Scene, grain, photograph, random_scene

EVERY_KIND = pytest.mark.parametrize("kind", [*SIMPLE, *COMPLEX], ids=lambda kind: kind.kind)


@dataclass(frozen=True)
class EditSample:
    """A scene, an edit that suits it, one wording, the scene after it, and the noise of both."""

    before: Scene
    edit: SceneEdit
    instruction: str
    after: Scene
    noise: np.ndarray
    rng: np.random.Generator

    def image(self, scene: Scene) -> Image.Image:
        return Image.fromarray(photograph(scene, self.noise))


def edit_samples(kind: type[SceneEdit], count: int) -> Iterator[EditSample]:
    """`count` samples of one kind of edit."""
    seed = 0
    while count:
        rng = np.random.default_rng([20, seed])
        seed += 1
        before = random_scene(rng)
        edit = kind.choose(before, rng)
        if edit is not None:
            count -= 1
            yield EditSample(before, edit, edit.worded(rng), edit.apply(before, rng), grain(rng), rng)
