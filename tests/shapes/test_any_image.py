"""The pixel statistics that stand in for a judge on photographs: monotone, bounded, and honest about what they are."""

from __future__ import annotations

import numpy as np
from PIL import Image

from shapes.any_image import ENOUGH_CHANGE, MOST_CHANGE, NOTICE, score_edit, score_quality


def flat(level: float) -> Image.Image:
    return Image.new("RGB", (40, 24), (round(255 * level),) * 3)


def test_success_grows_with_the_change_and_restraint_falls_beyond_it() -> None:
    """A copy must not be the best answer, and neither must an image that has nothing of the source."""
    changes = [0.0, ENOUGH_CHANGE / 2, ENOUGH_CHANGE, (ENOUGH_CHANGE + MOST_CHANGE) / 2, MOST_CHANGE, 0.9]
    verdicts = [score_edit("", flat(0), flat(change)) for change in changes]
    assert [verdict.scores[0] for verdict in verdicts] == [0, 5, 10, 10, 10, 10]
    assert [verdict.scores[1] for verdict in verdicts] == [10, 10, 10, 5, 0, 0]


def test_grain_costs_quality() -> None:
    """Noise is what a broken decoder or random codes give."""
    rng = np.random.default_rng(0)
    noises = [0, 8, 16, 32, 128]
    images = [np.clip(128 + rng.normal(0, noise, (40, 40, 3)), 0, 255).astype(np.uint8) for noise in noises]
    scores = [score_quality(Image.fromarray(image)).scores[0] for image in images]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)
    assert (scores[0], scores[-1]) == (10, 0)


def test_smooth_shades_are_no_grain() -> None:
    """The sky of a photograph is not flat."""
    shades = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (60, 1))
    assert score_quality(Image.fromarray(shades).convert("RGB")).scores[0] == 10


def test_sizes_need_not_be_equal() -> None:
    assert score_edit("", flat(0.4).resize((31, 17)), flat(0.4)).scores[0] == 0
    assert score_quality(Image.new("RGB", (1, 1))).scores[0] == 10


def test_every_reason_says_that_it_is_no_judgement() -> None:
    assert score_edit("", flat(0), flat(1)).reason.startswith(NOTICE)
    assert score_quality(flat(0)).reason.startswith(NOTICE)
