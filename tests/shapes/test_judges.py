"""Single scores of the world's judges, in words and as probabilities of a token."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from edit_samples import EVERY_KIND, EditSample, edit_samples
from PIL import Image
from served_judge import Served

from rl.config import JudgeConfig, RewardConfig
from rl.reward.cache import ImageEncoder
from rl.reward.scores import Score, Unavailable
from rl.scoring import start_scorer
from shapes.any_image import score_agreement
from shapes.edits import SceneEdit
from shapes.edits.simple import Recolour
from shapes.judges import VERIFIER, BadQuestion, choice
from shapes.scene import BACKGROUNDS, photograph
from shapes.verifier import judge_agreement


@EVERY_KIND
def test_agreement_is_full_for_the_same_scene_alone(kind: type[SceneEdit]) -> None:
    """Guards: a copy of the source that agrees with an edit of it."""
    for sample in edit_samples(kind, 20):
        target, source = sample.image(sample.after), sample.image(sample.before)
        assert judge_agreement(target, target).scores[0] == 10
        assert judge_agreement(target, source).scores[0] <= 5


def test_a_background_is_a_difference() -> None:
    sample = next(edit_samples(Recolour, 1))
    other = next(tone for tone in BACKGROUNDS if tone != sample.after.background)
    image = sample.image(replace(sample.after, background=other))
    assert judge_agreement(sample.image(sample.after), image).scores[0] == 5


@pytest.mark.parametrize(("instruction", "expected"), [("remove the noise", "5"), ("add a green circle", "9")])
def test_a_flaw_counts_where_it_was_to_be_removed(instruction: str, expected: str) -> None:
    """The words of the question have to reach the judge: a noisy copy shows the same scene as its restoration."""
    sample = next(edit_samples(Recolour, 1))
    noisy = Image.fromarray(photograph(replace(sample.before, flaw="noise", strength=0.9), sample.noise))
    question = _question(sample, "agreement")
    encoder = ImageEncoder()
    for place, image in enumerate((sample.image(sample.before), noisy), start=1):
        question["messages"][0]["content"][place]["image_url"]["url"] = encoder.data_url(image, str(place))
    question["messages"][0]["content"][0]["text"] = f"Editing instruction: {instruction}\nGrade: agreement"
    assert choice(VERIFIER, question)["message"]["content"] == expected


def test_agreement_of_photographs_falls_with_the_difference() -> None:
    images = [Image.new("RGB", (8, 8), (level,) * 3) for level in (100, 105, 110, 200)]
    scores = [score_agreement(images[0], image).scores[0] for image in images]
    assert scores == sorted(scores, reverse=True) and (scores[0], scores[-1]) == (10, 0)


@pytest.mark.parametrize("groundscore", [0.0, 1.0])
def test_expected_scores_are_the_written_ones(verifier: Served, groundscore: float) -> None:
    """The whole path in both modes: a judge that is sure of its scores must give the same by its probabilities. Guards
    the scale, the names of the scores that both sides agree on, and the order of images."""
    judge = JudgeConfig(verifier.url)
    sample = next(edit_samples(Recolour, 1))
    source, target = sample.image(sample.before), sample.image(sample.after)
    other = sample.image(replace(sample.after, background=_other(sample.after.background)))
    found: list[Score] = []
    for expected in (False, True):
        reward = RewardConfig(groundscore=groundscore, expected=expected)
        with start_scorer(judge, 0, reward) as scorer:
            for edited in (target, source, other):
                outcome = scorer.submit(sample.instruction, source, edited, target).result(300)
                assert isinstance(outcome, Score), outcome
                found.append(outcome)
    for written, by_token in zip(found[:3], found[3:], strict=True):
        assert by_token.value == pytest.approx(written.value) and by_token.parts == pytest.approx(written.parts)
    assert len({score.value for score in found[:3]}) == 3


def test_any_image_gives_every_score(any_image: Served) -> None:
    """Guards: a rehearsal on photographs that cannot try these rewards."""
    photograph, edited = Image.new("RGB", (64, 40), (90, 120, 60)), Image.new("RGB", (64, 40), (110, 140, 80))
    reward = RewardConfig(groundscore=1.0, expected=True)
    with start_scorer(JudgeConfig(any_image.url), 0, reward) as scorer:
        assert isinstance(scorer.submit("Make them stand up", photograph, edited, edited).result(300), Score)


def test_an_instruction_from_elsewhere_has_no_expected_score(verifier: Served) -> None:
    photograph = Image.new("RGB", (64, 40), (90, 120, 60))
    with start_scorer(JudgeConfig(verifier.url), 0, RewardConfig(expected=True)) as scorer:
        outcome = scorer.submit("Make them stand up", photograph, photograph).result(300)
    assert isinstance(outcome, Unavailable) and outcome.refused


def test_probabilities_are_those_of_a_token() -> None:
    """A full score is a sure 9; no more tokens are listed than were asked for."""
    sample = next(edit_samples(Recolour, 1))
    for top in (0, 1, 20):
        answer = choice(VERIFIER, _question(sample, top_logprobs=top))
        (token,) = answer["logprobs"]["content"]
        assert token["token"] == answer["message"]["content"] == "9"
        assert len(token["top_logprobs"]) == min(top, 1)
        assert sum(math.exp(entry["logprob"]) for entry in token["top_logprobs"]) == pytest.approx(min(top, 1))


def test_probabilities_of_two_scores_are_refused() -> None:
    """Guards: the first of two scores in the place of the one that was meant."""
    sample = next(edit_samples(Recolour, 1))
    with pytest.raises(BadQuestion, match="Grade"):
        choice(VERIFIER, _question(sample, grade=None))
    with pytest.raises(BadQuestion, match="beauty"):
        choice(VERIFIER, _question(sample, grade="beauty"))


def _question(sample: EditSample, grade: str | None = "success", **settings: Any) -> dict[str, Any]:
    lines = [f"Editing instruction: {sample.instruction}", *([f"Grade: {grade}"] if grade else [])]
    encoder = ImageEncoder()
    images = [sample.image(scene) for scene in (sample.before, sample.after)]
    urls = [encoder.data_url(image, str(place)) for place, image in enumerate(images)]
    content = [
        {"type": "text", "text": "\n".join(lines)},
        *({"type": "image_url", "image_url": {"url": url}} for url in urls),
    ]
    return {"messages": [{"role": "user", "content": content}], "logprobs": True, **settings}


def _other(background: str) -> str:
    return next(tone for tone in BACKGROUNDS if tone != background)
