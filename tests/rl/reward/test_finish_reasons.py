"""Why a reply is no verdict, in the server's own words; and what is one all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from edge_replies import GOOD, ask
from stub_judge import with_judge

from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Score, Unavailable, Unparsable
from rl.reward.viescore import VieScore, load_prompts


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"message": {"content": None}, "finish_reason": "length"}, "cut off at max_tokens (1400) while thinking"),
        (
            {"message": {"content": "", "reasoning_content": "The sky"}, "finish_reason": "length"},
            "cut off at max_tokens (1400) while thinking",
        ),
        (
            {"message": {"content": '<think>Perhaps {"score": [3, 3]}. Wait'}, "finish_reason": "length"},
            "cut off at max_tokens (1400) while thinking",
        ),
        ({"message": {"content": '{"reasoning": "The'}, "finish_reason": "length"}, "cut off at max_tokens (1400)"),
        (  # a server that opens the thought in the question, so that nothing marks it
            {"message": {"content": f"{'The sky is purple. ' * 30}So {GOOD} fits, then"}, "finish_reason": "length"},
            "cut off at max_tokens (1400) while thinking",
        ),
        ({"message": {"content": None, "refusal": "I can't help."}, "finish_reason": "stop"}, "refused: I can't help."),
        ({"message": {"content": GOOD, "refusal": "I can't help."}}, "refused: I can't help."),
        (
            {"message": {"content": GOOD}, "finish_reason": "content_filter"},
            "stopped by the server's filter (content_filter)",
        ),
        ({"message": {"content": [{"type": "refusal", "refusal": "No."}]}}, "refused: No."),
        ({"message": {"content": "hm"}, "finish_reason": "stop"}, ""),
        ({"message": {"content": '{"reason'}, "finish_reason": "model_length"}, "cut off at max_tokens (1400)"),
        ({"message": {"content": GOOD}, "finish_reason": "SPII"}, "stopped by the server's filter (SPII)"),
        ({"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}, "it called a tool"),
        (
            {"message": {"content": "", "reasoning": GOOD}, "finish_reason": "stop"},
            "an empty reply, all of its words are in its thought",
        ),
    ],
)
def test_the_servers_own_reason_is_kept(stub: Any, image: Any, choice: dict[str, Any], reason: str) -> None:
    """Guards: a draft that was taken for the verdict, a score out of a refusal, "unparsable" without a reason."""

    async def reply(_: Any) -> web.Response:
        return web.json_response({"choices": [choice]})

    stub.reply = reply
    judge = Judge(JudgeConfig(stub.url, reasks=1), cache := ReplyCache())
    outcome = with_judge(judge, lambda j: VieScore(j, load_prompts()).score("do", image(0), image(1)))
    assert isinstance(outcome, Unparsable) and outcome.reason == reason
    assert len(stub.bodies) == 4 and len(cache) == 0


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "error", "error": {"message": "upstream died"}},
        {"finish_reason": "stop", "error": {"message": "upstream died"}},
        {"finish_reason": "insufficient_system_resource", "error": "upstream died"},
        {"finish_reason": "abort", "error": "upstream died"},
    ],
)
def test_a_reply_that_broke_off_is_none(stub: Any, choice: dict[str, Any]) -> None:
    """Guards a verdict of half a reply: gateways report the death of the server behind them with status 200."""

    async def reply(_: Any) -> web.Response:
        return web.json_response({"choices": [choice | {"message": {"content": GOOD}}]})

    stub.reply = reply
    outcome = ask(stub.url)
    assert isinstance(outcome, Unavailable) and not outcome.refused and outcome.reason.endswith(": upstream died")


@pytest.mark.parametrize(
    ("status", "message", "asked"),
    [
        (429, "You exceeded your current quota, please check your plan and billing details.", 1),
        (429, "Quota exceeded for metric requests per minute", 2),
        (402, "Insufficient credits", 1),
        (409, "conflict", 2),
        (529, "Overloaded", 2),
    ],
)
def test_what_waiting_does_not_mend_is_asked_once(stub: Any, status: int, message: str, asked: int) -> None:
    """Guards hours of pauses for an account that is used up, and a busy server that is not asked again."""

    class Refusal(web.HTTPException):
        status_code = status

    async def refuse(_: Any) -> web.Response:
        raise Refusal(text=json.dumps({"error": {"message": message}}))

    stub.reply = refuse
    outcome = ask(stub.url)
    assert isinstance(outcome, Unavailable) and outcome.refused == (asked == 1) and message in outcome.reason
    assert len(stub.bodies) == asked


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        f"{GOOD}\nI gave 8 because the sky is pur",
        f"{'The sky is purple. ' * 30}\n```json\n{GOOD}\n```",
        '{"score": [8, 7], "reasoning": "The sky is pur',
    ],
)
def test_a_verdict_before_the_limit_is_one(stub: Any, image: Any, content: str) -> None:
    """Guards replies that are paid for again because their explanation met the limit of tokens."""

    async def reply(_: Any) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": content}, "finish_reason": "length"}]})

    stub.reply = reply
    judge = Judge(JudgeConfig(stub.url))
    outcome = with_judge(judge, lambda j: VieScore(j, load_prompts()).score("do", image(0), image(1)))
    assert isinstance(outcome, Score) and outcome.value == 7


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": GOOD}],
        [{"type": "text", "text": GOOD[:10]}, {"type": "text", "text": GOOD[10:]}],
        [{"type": "thinking", "thinking": '{"score": [1, 1]}'}, {"type": "output_text", "text": GOOD}],
        [GOOD],
    ],
)
def test_parts_of_text_are_joined(stub: Any, image: Any, content: Any) -> None:
    """Guards: 20 requests for 4 questions, all refused, for a list where a text was expected."""

    async def reply(_: Any) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": content}}]})

    stub.reply = reply
    judge = Judge(JudgeConfig(stub.url))
    outcome = with_judge(judge, lambda j: VieScore(j, load_prompts()).score("do", image(0), image(1)))
    assert isinstance(outcome, Score) and outcome.value == 7
    assert len(stub.bodies) == 2


def test_half_a_character_in_a_reply_poisons_no_cache(stub: Any, image: Any, tmp_path: Path) -> None:
    """Guards: an accepted reply with a lone surrogate, by which the scores file of a whole run could not be written."""

    async def reply(_: Any) -> web.Response:
        text = '{"choices": [{"message": {"content": "{\\"score\\": [8, 7], \\"reasoning\\": \\"a hat \\ud83c\\"}"}}]}'
        return web.Response(text=text, content_type="application/json")

    stub.reply = reply
    for _ in range(2):
        with ReplyCache(tmp_path / "answers.jsonl") as cache:
            judge = Judge(JudgeConfig(stub.url), cache)
            outcome = with_judge(judge, lambda j: VieScore(j, load_prompts()).score("do", image(0), image(1)))
            said = with_judge(Judge(JudgeConfig(stub.url), cache), lambda j: j.ask("q", []))
        assert isinstance(outcome, Score) and outcome.value == 7
        assert said.encode() and "\ufffd" in said
    assert len(stub.bodies) == 3
