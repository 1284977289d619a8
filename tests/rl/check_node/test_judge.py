"""The check of the judge, with judges that reply well, badly, and not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_judge import StubJudge, answers

from emu3.errors import UserError
from rl.check_node import judge
from rl.check_node.check import Node, Skipped

NODE = Node(0, Path("runs"), None, concurrency=8, judge_seconds=0.5)
GRADES = json.dumps({"reasoning": "as asked", "score": [9, 4]})


@pytest.fixture
def server() -> Iterator[StubJudge]:
    running = StubJudge()
    yield running
    running.close()


def asked(address: str) -> Node:
    return dataclasses.replace(NODE, judge=address)


def test_a_judge_that_answers(server: StubJudge) -> None:
    """Its rate is that of questions, at the concurrency that a run has, each about other images."""
    line, facts = judge.judge(asked(server.url))
    assert line.startswith("stub scores 4.0 of 10 in")
    assert facts["model"] == "stub" and facts["score"] == 4.0 and facts["without_score"] == 0
    assert facts["questions_per_s"] > 1 and server.most_at_once <= 8
    bodies = [json.dumps(body["messages"]) for body in server.bodies]
    assert len(bodies) > 4 and len(set(bodies)) == len(bodies)


def test_no_judge_is_named() -> None:
    with pytest.raises(Skipped, match="APP__REWARD_FUNCTION_API_BASE"):
        judge.judge(NODE)


def test_nobody_is_there(server: StubJudge) -> None:
    server.close()
    with pytest.raises(UserError, match="cannot be used"):
        judge.judge(asked(server.url))


def test_a_model_that_gives_no_grades(server: StubJudge) -> None:
    """Guards a text model behind the address, which replies to everything."""
    server.reply = answers("What a nice square!")
    with pytest.raises(UserError, match=r"stub gave no score for two images: its replies hold no scores"):
        judge.judge(asked(server.url))


def test_one_that_fails_when_many_ask(server: StubJudge) -> None:
    """Guards a server whose first reply is right and which a run's concurrency then brings down."""
    server.reply = answers(*[GRADES] * 2, "no")
    with pytest.raises(UserError, match=r"of \d+ edits got no score at 8 questions at once"):
        judge.judge(asked(server.url))


def test_the_stub_of_the_small_runs_is_a_judge() -> None:
    """And its scores differ, since groups of equal scores train nothing."""
    with judge.stub_judge() as address:
        _, facts = judge.judge(asked(address))
        assert facts["without_score"] == 0
    with pytest.raises(UserError, match="cannot be used"):
        judge.judge(asked(address))
