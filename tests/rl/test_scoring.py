"""From groups to scores: which images are decoded, which reward is asked for, what an outage does to a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from aiohttp import web
from PIL import Image
from stub_judge import StubJudge, answers
from tenacity import wait_none

from emu3.errors import UserError
from rl.config import JudgeConfig, RewardConfig
from rl.reward.scores import Score, Unavailable
from rl.rollout.engine import Prompt, Rollout
from rl.scoring import Episode, collect, start_scorer, submit_group

GOOD = answers(json.dumps({"reasoning": "so", "score": [9, 4]}))


async def refusal(_: dict[str, Any]) -> web.Response:
    message = "Unsupported parameter: 'max_tokens'"
    return web.json_response({"error": {"message": message}}, status=400)


class Codec:
    """Images of one colour, whose red is the first code of the grid; notes what it decoded."""

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def decode(self, grids: Sequence[np.ndarray]) -> list[Image.Image]:
        self.decoded += [int(grid[0, 0]) for grid in grids]
        return [Image.new("RGB", (8, 8), (int(grid[0, 0]), 0, 0)) for grid in grids]


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StubJudge]]:
    monkeypatch.setattr("rl.reward.endpoints.BACKOFF", wait_none())
    made: list[StubJudge] = []

    def make(port: int = 0) -> StubJudge:
        made.append(StubJudge(port))
        made[-1].reply = GOOD
        return made[-1]

    yield make
    for judge in made:
        judge.close()


def grid(value: int) -> np.ndarray:
    return np.full((1, 1), value, np.uint16)


def group(target: int | None, *answers: int) -> tuple[Prompt, list[Rollout]]:
    prompt = Prompt("p", (), None, grid(1), "do", None, None if target is None else grid(target))  # type: ignore[arg-type]
    return prompt, [Rollout([], np.zeros(0, np.float32), grid(code), None) for code in answers]


def reds(body: dict[str, Any]) -> list[str]:
    return [part["image_url"]["url"] for part in body["messages"][0]["content"][1:]]


def test_targets_are_decoded_once_and_only_where_they_are(judges) -> None:
    """Guards: a decode for each of eight rollouts, or for a reward that does not look at it; an answer that is taken
    for the target."""
    codec = Codec()
    with start_scorer(JudgeConfig(judges().url), 0) as scorer:
        plain = submit_group(scorer, codec, *group(None, 5, 6))  # type: ignore[arg-type]
        assert codec.decoded == [1, 5, 6] and all(episode.target is None for episode in plain)
    judge = judges()
    judge.reply = answers('{"score": [9]}')
    with start_scorer(JudgeConfig(judge.url), 0, RewardConfig(viescore=0, groundscore=1)) as scorer:
        codec.decoded.clear()
        episodes = submit_group(scorer, codec, *group(3, 5, 6))  # type: ignore[arg-type]
        assert codec.decoded == [1, 3, 5, 6]
        assert [episode.edited.getpixel((0, 0)) for episode in episodes] == [(5, 0, 0), (6, 0, 0)]
        outcomes = [episode.score.result(300) for episode in episodes]
    assert outcomes == [Score(9.0, {"agreement": 9.0})] * 2
    assert len({images[0] for images in map(reds, judge.bodies)}) == 1  # the target, in each question first


@pytest.mark.parametrize(
    ("reward", "questions", "parts"),
    [
        (RewardConfig(), 2, {"sc", "pq", "edit_success", "overedit", "naturalness", "no_artifacts"}),
        (RewardConfig(viescore=0, groundscore=2), 1, {"agreement"}),
        (RewardConfig(groundscore=1), 3, {"viescore/sc", "viescore/value", "groundscore/value"}),
        (RewardConfig(expected=True), 4, {"sc", "pq"}),
        (RewardConfig(groundscore=1, expected=True), 5, {"viescore/pq", "groundscore/agreement"}),
    ],
)
def test_the_config_chooses_the_reward(judges, reward, questions, parts) -> None:
    """Guards: a weight of 0 that is asked for all the same, a setting that is read and not used."""
    judge = judges()

    async def reply(body: dict[str, Any]) -> web.Response:
        text = body["messages"][0]["content"][0]["text"]
        grades = [5] if "Grade: agreement" in text else [5, 5]
        top = [{"token": "5", "logprob": 0.0}]
        logprobs = {"content": [{**top[0], "top_logprobs": top}]} if body.get("logprobs") else None
        assert (logprobs is not None) == reward.expected
        message = {"content": json.dumps({"score": grades})}
        return web.json_response({"choices": [{"message": message, "logprobs": logprobs}]})

    judge.reply = reply
    with start_scorer(JudgeConfig(judge.url), 0, reward) as scorer:
        (episode,) = submit_group(scorer, Codec(), *group(3, 5))  # type: ignore[arg-type]
        outcome = episode.score.result(300)
    assert isinstance(outcome, Score) and parts <= set(outcome.parts)
    assert outcome.value == pytest.approx(10 / 9 * 5 if reward.expected else 5)
    assert len(judge.bodies) == questions


def test_expected_grades_have_no_published_texts(judges, tmp_path) -> None:
    """Guards: a run under the authors' prompts, by its config, that never asks them."""
    with (
        pytest.raises(UserError, match=r"judge\.prompts"),
        start_scorer(JudgeConfig(judges().url, prompts=str(tmp_path)), 0, RewardConfig(expected=True)),
    ):
        pass


def test_a_judge_that_dies_in_the_middle_of_a_step_and_comes_back(judges, capsys) -> None:
    """Guards: rollouts that count as 0, or are lost, or are judged twice, because of an outage. Four of eight are
    judged when the judge goes; the run says so, saves once, waits, and asks for the others only."""
    judge = judges()
    answered: list[int] = []

    async def until_it_dies(body: dict[str, Any]) -> web.StreamResponse:
        if len(answered) >= 8:
            raise ConnectionResetError
        answered.append(1)
        return await GOOD(body)

    config = JudgeConfig(judge.url, attempts=1, concurrency=1, pause_seconds=0.0, pauses=50, max_failed_share=0.0)
    returned: list[StubJudge] = []
    with start_scorer(config, 0) as scorer:
        judge.reply = until_it_dies
        episodes: list[Episode] = []
        for first in (10, 20):
            codes = range(first, first + 4)
            episodes += submit_group(scorer, Codec(), *group(None, *codes))  # type: ignore[arg-type]
        before = [episode.score.result(300) for episode in episodes]
        judge.close()

        def back() -> None:
            returned.append(judges(judge.port))

        outcomes = collect(episodes, scorer, config, Accelerator(cpu=True), back)
    assert sum(isinstance(outcome, Unavailable) for outcome in before) == 4
    assert all(isinstance(outcome, Score) and outcome.value == 4 for outcome in outcomes), outcomes
    (again,) = returned
    assert len(again.bodies) == 2 * 4
    assert f"paused: the judge at {judge.url} gave no score for 4 of 8 rollouts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "quote"),
    [
        (answers("I like it very much."), "its replies hold no scores, such as 'I like it very much.'"),
        (answers(None), "its replies hold no scores, such as ''"),
        (refusal, "Unsupported parameter: 'max_tokens'"),
    ],
)
def test_what_waiting_does_not_mend_is_not_waited_for(judges, capsys, reply, quote) -> None:
    """Guards: 30 pauses of a minute for a judge whose replies never hold a score, and then the advice to start again
    when it is back."""
    judge = judges()
    judge.reply = reply
    config = JudgeConfig(judge.url, reasks=0, pause_seconds=60.0, pauses=30)
    saved: list[bool] = []
    with start_scorer(config, 0) as scorer:
        episodes = submit_group(scorer, Codec(), *group(None, 5, 6, 7))  # type: ignore[arg-type]
        with pytest.raises(UserError) as caught:
            collect(episodes, scorer, config, Accelerator(cpu=True), lambda: saved.append(True))
    message = str(caught.value)
    assert quote in message and "waiting will not mend this" in message and "is back" not in message
    assert saved == [True] and "paused" not in capsys.readouterr().out


def test_one_of_two_judges_that_dies_costs_nothing(judges, capsys) -> None:
    """Guards: a pause of the run while a second judge is idle."""
    dying, well = judges(), judges()

    async def cut(body: dict[str, Any]) -> web.StreamResponse:
        raise ConnectionResetError

    config = JudgeConfig(f"{dying.url},{well.url}", max_failed_share=0.0, pauses=0)
    with start_scorer(config, 0) as scorer:
        dying.reply = cut
        episodes = submit_group(scorer, Codec(), *group(None, *range(10, 18)))  # type: ignore[arg-type]
        outcomes = collect(episodes, scorer, config, Accelerator(cpu=True), lambda: None)
        step = scorer.step()
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    assert step.endpoints[dying.url]["outages"] >= 1 and step.counts["unavailable"] == 0
    assert "paused" not in capsys.readouterr().out
