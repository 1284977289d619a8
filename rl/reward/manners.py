"""The two manners in which a judge is asked: for words, or for the probabilities of one token.

In words the model explains itself and writes its grades. Of one token (`logprobs` and `top_logprobs` of the OpenAI
protocol) nothing is kept but how probable the model found each of the likeliest tokens; which of them it drew does
not matter, so there is nothing to ask again. That request goes out at temperature 1, where a server's probabilities
are the model's own, whether it takes them before the temperature (vLLM) or after.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rl.reward.retry import BrokenReply

# The most that OpenAI and vLLM give.
TOP_LOGPROBS = 20
# A judge at temperature 0 would repeat a useless answer word for word.
REASK_TEMPERATURE = 0.7


class NoProbabilities(Exception):
    """The server does not report the probabilities of tokens, and will not do so when it is asked again."""


@dataclass(frozen=True)
class Manner:
    """How to ask. turns: an answer that cannot be used is asked for again until there were so many. settings: of the
    request in a turn, beside model and messages. identity: what of them decides the answer, for the cache. read: the
    answer in a reply; raises `BrokenReply` or `NoProbabilities`."""

    turns: int
    settings: Callable[[int], dict[str, Any]]
    identity: list[Any]
    read: Callable[[Any], str]


def in_words(temperature: float | None, max_tokens: int, seed: int, reasks: int) -> Manner:
    """The whole answer. temperature: of the first turn, None leaves it to the server; further turns are warmer and
    have other seeds."""

    def settings(turn: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed + turn}
        if temperature is not None:
            asked["temperature"] = max(temperature, REASK_TEMPERATURE) if turn else temperature
        return asked

    return Manner(1 + reasks, settings, [temperature, max_tokens, seed], _words)


def in_one_token() -> Manner:
    """The answer is JSON: a list of [token, log-probability in nats] of the likeliest first tokens."""
    settings = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return Manner(1, lambda turn: settings, ["one token", TOP_LOGPROBS], _probabilities)


def _words(reply: Any) -> str:
    """The text of a chat completion, "" where the model gave none."""
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise BrokenReply("the reply is not a chat completion") from None
    if content is not None and not isinstance(content, str):
        raise BrokenReply("the reply's content is not text")
    return content or ""


def _probabilities(reply: Any) -> str:
    """The likeliest first tokens of a chat completion; an empty list where the model said nothing at all."""
    _words(reply)
    reported = reply["choices"][0].get("logprobs")
    if not isinstance(reported, dict) or not isinstance(reported.get("content"), list):
        raise NoProbabilities(
            "it does not report the probabilities of tokens (logprobs), which an expected score needs"
        )
    if not reported["content"]:
        return "[]"
    try:
        likeliest = [(entry["token"], float(entry["logprob"])) for entry in reported["content"][0]["top_logprobs"]]
    except (KeyError, TypeError, ValueError):
        raise BrokenReply("the reply's probabilities cannot be read") from None
    if not all(isinstance(token, str) and math.isfinite(logprob) for token, logprob in likeliest):
        raise BrokenReply("the reply's probabilities are no numbers")
    return json.dumps(likeliest)
