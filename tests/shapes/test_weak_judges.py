"""Judges that are weaker than the verifier, on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from edit_samples import edit_samples
from PIL import Image

from emu3.errors import UserError
from shapes import judge_server
from shapes.edits.simple import Recolour
from shapes.judges import VERIFIER, Verdict, WorldJudge, weakened

IMAGES = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in range(256)]
FIVES = WorldJudge("fives", lambda *_: Verdict((5, 5), ""), lambda _: Verdict((5, 5), ""), lambda *_: Verdict((5,), ""))


def test_without_a_weakness_it_is_the_verifier_itself() -> None:
    assert weakened(VERIFIER) is VERIFIER


def test_each_weakness_has_a_name_of_its_own() -> None:
    """Replies are kept by the judge's name: two judges of one name would give each other's scores."""
    settings = [(3, 0, 0), (5, 0, 0), (None, 1, 0), (None, 1.5, 0), (None, 0, 1), (3, 1, 1), (None, 0, 0)]
    names = {weakened(VERIFIER, *setting).model for setting in settings}
    assert len(names) == len(settings)
    assert weakened(VERIFIER, 3, 1.5, 5).model == "shapes-verifier-coarse3-noise1.5-bias5"


def test_noise_is_of_the_question_and_has_its_deviation() -> None:
    """A judge that changes its mind when asked again would be averaged out by asking again."""
    noisy = weakened(FIVES, noise=2)
    ask = [noisy.edit("remove the red circle", IMAGES[0], image).scores for image in IMAGES]
    assert ask == [noisy.edit("remove the red circle", IMAGES[0], image.copy()).scores for image in IMAGES]
    errors = np.array(ask) - 5
    assert abs(errors.mean()) < 0.4 and 1.6 < errors.std() < 2.4
    assert abs(np.corrcoef(errors.T)[0, 1]) < 0.3, "the two scores err by themselves"
    assert ask != [noisy.edit("remove the blue circle", IMAGES[0], image).scores for image in IMAGES]
    assert len({noisy.quality(image).scores for image in IMAGES}) > 20
    assert len({noisy.agreement(IMAGES[0], image, "").scores for image in IMAGES}) > 4


@pytest.mark.parametrize(("levels", "expected"), [(2, {0, 10}), (3, {0, 5, 10}), (5, {0, 2, 5, 8, 10})])
def test_a_coarse_judge_knows_few_scores(levels: int, expected: set[int]) -> None:
    coarse = weakened(FIVES, levels=levels, noise=4)
    assert {score for image in IMAGES for score in coarse.quality(image).scores} == expected


def test_a_biased_judge_believes_a_copy_and_still_prefers_the_edit() -> None:
    biased = weakened(VERIFIER, bias=5)
    sample = next(edit_samples(Recolour, 1))
    source, target = sample.image(sample.before), sample.image(sample.after)
    assert biased.edit(sample.instruction, source, source).scores == (5, 10)
    assert biased.edit(sample.instruction, source, target).scores == (10, 10)
    empty = sample.image(sample.before.put(sample.before.filled()[0], None).put(sample.before.filled()[1], None))
    success, restraint = biased.edit(sample.instruction, source, empty).scores
    assert success == round(0.5 * restraint) < 5


def test_only_the_verifier_is_weakened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["judge_server", "--any-image", "--coarse", "3"])
    with pytest.raises(UserError, match="only the verifier"):
        judge_server.main()


def test_the_options_make_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards options that are read and left aside: training by the strong judge under a weak one's heading."""
    served: list[str] = []

    async def serve(judge: WorldJudge, *_: object) -> None:
        served.append(judge.model)

    monkeypatch.setattr(judge_server, "serve", serve)
    monkeypatch.setattr("sys.argv", ["judge_server", "--coarse", "3", "--noise", "2", "--bias", "4"])
    judge_server.main()
    assert served == ["shapes-verifier-coarse3-noise2-bias4"]
