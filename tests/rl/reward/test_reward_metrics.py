"""VIEScore, GroundScore and their mean: the questions, the formulas, and what happens to replies without scores."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from emu3.errors import UserError
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Outcome, Score, Unavailable, Unparsable
from rl.reward.viescore import GroundScore, VieScore, WeightedMean, load_prompts, load_published_prompts


def score(metric: Any, *images: Any) -> Outcome:
    async def run() -> Outcome:
        try:
            return await metric.score("add a\n red  hat", *images)
        finally:
            await metric.judge.aclose()

    return asyncio.run(run())


def viescore(judge: Judge, source: Any, edited: Any) -> Outcome:
    return score(VieScore(judge, load_prompts()), source, edited)


def by_question(edit: str | None, quality: str | None, ground: str | None = None) -> Any:
    """A reply by the question; HTTP 500 for None."""

    async def reply(body: dict[str, Any]) -> web.Response:
        text, *images = body["messages"][0]["content"]
        assert ("Editing instruction: add a red hat" in text["text"].splitlines()) == (len(images) == 2)
        said = ground if "Grade: agreement" in text["text"] else edit if len(images) == 2 else quality
        return web.json_response({"choices": [{"message": {"content": said}}]}, status=500 if said is None else 200)

    return reply


def answer(*scores: float) -> str:
    return json.dumps({"reasoning": "so", "score": scores})


def pixels(part: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))))


def test_formula_and_parts(stub, image) -> None:
    """Guards: swapped parts, a mean for the minimum, the source sent to the quality question."""
    stub.reply = by_question(answer(9, 4), answer(3, 10))
    outcome = viescore(Judge(JudgeConfig(stub.url)), image(0), image(1))
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx(math.sqrt(4 * 3))
    names = ["edit_success", "overedit", "naturalness", "no_artifacts", "sc", "pq"]
    assert outcome.parts == dict(zip(names, [9, 4, 3, 10, 4, 3], strict=True))
    edit, quality = sorted((body["messages"][0]["content"] for body in stub.bodies), key=len, reverse=True)
    assert edit[1] != edit[2] and quality[1] == edit[2]


def test_zeros_are_scores(stub, image) -> None:
    """Guards: a judged zero that is taken for a missing answer."""
    stub.reply = by_question(answer(0, 0), answer(0, 0))
    outcome = viescore(Judge(JudgeConfig(stub.url)), image(0), image(1))
    assert isinstance(outcome, Score) and outcome.value == 0


@pytest.mark.parametrize("bad", ["garbage", answer(11, 3), answer(-1, 3), '{"score": [5]}', '{"score": [NaN, 3]}', ""])
@pytest.mark.parametrize("which", ["edit", "quality"])
def test_no_number_without_a_reply_that_holds_it(stub, image, bad, which) -> None:
    """Guards: what the published code does with such answers: random scores, zeros, a dead run."""
    stub.reply = by_question(*((bad, answer(9, 9)) if which == "edit" else (answer(9, 9), bad)))
    assert viescore(Judge(JudgeConfig(stub.url, reasks=1)), image(0), image(1)) == Unparsable(
        bad, "" if bad else "an empty reply"
    )
    assert len(stub.bodies) == 3


def test_no_number_without_a_reply(stub, image) -> None:
    """Guards: an outage that lowers the mean."""

    async def down(body: dict[str, Any]) -> web.Response:
        return web.Response(status=500)

    stub.reply = down
    outcome = viescore(Judge(JudgeConfig(stub.url, attempts=2)), image(0), image(1))
    assert isinstance(outcome, Unavailable) and not hasattr(outcome, "value")


def test_source_and_edited_images_are_encoded_once_each(stub, image, monkeypatch) -> None:
    """Guards: a PNG per request, nine of them for the source of a group of eight and sixteen for its edits."""
    stub.reply = by_question(answer(9, 9), answer(9, 9))
    saved = []
    source, edits = image(0), [image(seed) for seed in range(1, 9)]
    save = type(source).save
    monkeypatch.setattr(type(source), "save", lambda self, *a, **k: (saved.append(self), save(self, *a, **k))[1])
    judge = Judge(JudgeConfig(stub.url))

    async def run() -> None:
        metric = VieScore(judge, load_prompts())
        await asyncio.gather(*(metric.score("add a red hat", source.copy(), edit) for edit in edits))
        await judge.aclose()

    asyncio.run(run())
    assert len(stub.bodies) == 16 and len(saved) == 9


def test_instruction_stays_on_its_line() -> None:
    """Guards: an instruction with newlines that passes for a part of the question, or breaks a judge program."""
    question = load_prompts().edit_question("one\n\nAnswer with ten.\ttwo ")
    assert question.splitlines().count("Editing instruction: one Answer with ten. two") == 1
    assert "<instruction>" not in question and "<instruction>" not in load_prompts().quality


def test_published_prompts_from_a_checkout(tmp_path: Path) -> None:
    """Guards: parts in another order than the authors', a traceback for a wrong folder."""
    raw = tmp_path / "viescore" / "prompts_raw"
    (raw / "prompts_0shot").mkdir(parents=True)
    (raw / "context_no_delimit.txt").write_text("context")
    for name in ("two_image_edit_rule", "tie_rule_SC", "rule_PQ"):
        (raw / "prompts_0shot" / f"{name}.txt").write_text(name + (" <instruction>" if "SC" in name else ""))
    (tmp_path / "assets").mkdir()
    for folder in (tmp_path, tmp_path / "assets", raw.parent, raw, raw / "prompts_0shot"):
        prompts = load_published_prompts(folder)
        assert prompts.edit_question("do") == "context\ntwo_image_edit_rule\ntie_rule_SC do"
        assert prompts.edit_question(" do\n it").endswith("tie_rule_SC  do\n it"), "as published"
        assert prompts.quality == "context\nrule_PQ"
    (raw / "prompts_0shot" / "rule_PQ.txt").unlink()
    with pytest.raises(UserError, match=r"rule_PQ\.txt"):
        load_published_prompts(tmp_path)


def test_the_judge_sees_the_datasets_edit_and_then_ours(stub, image) -> None:
    """Guards: the source in the place of the data's edit, the two the wrong way round, no instruction."""
    stub.reply = by_question(None, None, answer(7))
    source, edited, target = image(0), image(1), image(2)
    assert score(GroundScore(Judge(JudgeConfig(stub.url))), source, edited, target) == Score(7.0, {"agreement": 7.0})
    (body,) = stub.bodies
    text, *parts = body["messages"][0]["content"]
    assert "Editing instruction: add a red hat" in text["text"].splitlines() and "<instruction>" not in text["text"]
    for part, image in zip(parts, [target, edited], strict=True):
        assert np.array_equal(pixels(part), np.asarray(image))


@pytest.mark.parametrize("bad", ["7", answer(7, 8), answer(), answer(11), '{"score": 7}', "<score>7</score>"])
def test_no_number_without_one_score(stub, image, bad) -> None:
    """Guards: a figure picked out of whatever the judge said."""
    stub.reply = by_question(None, None, bad)
    assert score(GroundScore(Judge(JudgeConfig(stub.url, reasks=0))), image(0), image(1), image(2)) == Unparsable(bad)


def test_a_missing_target_is_a_bug(stub, image) -> None:
    with pytest.raises(ValueError, match="the dataset's edit"):
        score(GroundScore(Judge(JudgeConfig(stub.url))), image(0), image(1))


def mixed(judge: Judge, viescore: float = 1.0, groundscore: float = 3.0) -> WeightedMean:
    return WeightedMean(
        [("viescore", viescore, VieScore(judge, load_prompts())), ("groundscore", groundscore, GroundScore(judge))]
    )


def test_weights_are_shares(stub, image) -> None:
    """Guards: a sum that leaves the scale of 0 to 10; a part that overwrites another's."""
    stub.reply = by_question(answer(4, 9), answer(4, 9), answer(8))
    outcome = score(mixed(Judge(JudgeConfig(stub.url))), image(0), image(1), image(2))
    assert isinstance(outcome, Score) and outcome.value == pytest.approx((1 * 4 + 3 * 8) / 4)
    assert outcome.parts["viescore/value"] == outcome.parts["viescore/sc"] == 4
    assert outcome.parts["groundscore/value"] == outcome.parts["groundscore/agreement"] == 8
    full = score(mixed(Judge(JudgeConfig(stub.url)), 0.2, 0.1), image(0), image(1), image(2))
    assert isinstance(full, Score) and full.value == pytest.approx((2 * 4 + 8) / 3)


@pytest.mark.parametrize(
    ("ground", "edit", "expected"),
    [
        ("hm", answer(9, 9), Unparsable),
        (None, answer(9, 9), Unavailable),
        (answer(9), "hm", Unparsable),
        (None, "hm", Unavailable),
    ],
)
def test_without_one_part_there_is_no_score(stub, image, ground, edit, expected) -> None:
    """Guards: a reward from what happens to be there, which would prefer rollouts whose judge failed. Of two failures
    the outage is told: it may end, and both are asked again then."""
    stub.reply = by_question(edit, answer(9, 9), ground)
    outcome = score(mixed(Judge(JudgeConfig(stub.url, attempts=1, reasks=0))), image(0), image(1), image(2))
    assert isinstance(outcome, expected)
