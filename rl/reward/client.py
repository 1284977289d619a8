"""A judge behind the OpenAI protocol: questions with images in, replies or a reason for none out.

One ask is one question brought to an end: looked up in the cache, joined to an equal one that is under way, or sent
(`endpoints.py`), tried again after failures that pass and asked anew while the reply cannot be used. All of that
happens under one deadline, which begins when the ask gets one of the `concurrency` slots; an ask keeps its slot while
it pauses, so that a server in trouble gets fewer requests.

A judge is asked in one of two modes: for words, or for the probabilities of one token. In words the model explains
itself and writes its scores. Of one token (`logprobs` and `top_logprobs` of the OpenAI protocol) nothing is kept but
how probable the model found each of the likeliest tokens; which of them it drew does not matter, so there is nothing to
ask again. That request goes out at temperature 1, where a server's probabilities are the model's own, whether it takes
them before the temperature (vLLM) or after.

A judge that refuses every question, for its key or for a field of the request, is not asked on: after `MOST_REFUSED`
refusals and no reply the rest is refused here, by the same reason.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tenacity import RetryCallState

from emu3.tokenizer.images import to_rgb
from rl.reward.cache import ImageEncoder, ReplyCache, pixel_digest
from rl.reward.config import JudgeConfig
from rl.reward.counters import JudgeCounters, JudgeMeter, JudgeStep
from rl.reward.endpoints import FAILURES, Endpoints, NoProbabilities, is_transient
from rl.reward.scores import Unavailable, in_a_thought, shortened, without_surrogates
from rl.reward.transport import BrokenReply, said_in

API_KEY = "OPENAI_API_KEY"
"""Environment variable that holds the key; servers of one's own need none."""
# The most that OpenAI and vLLM give.
TOP_LOGPROBS = 20
# A judge at temperature 0 would repeat a useless reply word for word.
REASK_TEMPERATURE = 0.7
MOST_TOKENS = 10**9
"""Of one reply; a larger count is nonsense."""
MOST_REFUSED = 16
"""So many refusals without any reply say that the request itself is at fault."""
_FIELD_REFUSED = re.compile(
    r"(?=.*\b(?:max_tokens|temperature|seed)\b).*"
    r"(?:support|unrecogni|unknown|unexpected|extra|not (?:permitted|allowed))",
    re.IGNORECASE,
)
_ADVICE = (
    " (a field of the request can be left out by --judge-omit, renamed by --judge-max-tokens-name; in RL judge.omit)"
)
# What is in the reason that a server gives for the end of a reply.
_CUT_OFF = ("length", "max_tokens", "max_output", "token_limit", "context_window")
_FILTERED = (
    *("filter", "safety", "refus", "prohibited", "block", "recitation", "spii", "guardrail", "sensitive", "moderat"),
    "policy",
)
_BROKEN_OFF = ("error", "abort", "cancel", "insufficient", "timeout")


class Reply(str):
    """A judge's words. reason: what the server says of their end, "" for a plain one. unusable: they are no reply to
    the question but a refusal, by the model or by a filter behind it, or a thought that was cut off."""

    reason: str = ""
    unusable: bool = False


@dataclass(frozen=True)
class RequestMode:
    """How to ask. turns: a reply that cannot be used is asked for again until there were so many. settings: of the
    request in a turn, beside model and messages. identity: what of them decides the reply, for the cache. read: the
    reply in a response; raises `BrokenReply` or `NoProbabilities`."""

    turns: int
    settings: Callable[[int], dict[str, Any]]
    identity: list[Any]
    read: Callable[[Any], Reply]


class Judge:
    """One or several OpenAI-compatible servers of one model, and how to ask it. For one event loop; close it there
    with `aclose`. Raises UserError if `config.base_url` is no http address.

    cache: None keeps nothing. on_reply: told of the number of images and the reply of each ask that has one, in the
    context of the caller.
    """

    def __init__(
        self,
        config: JudgeConfig,
        cache: ReplyCache | None = None,
        on_reply: Callable[[int, str], None] = lambda images, reply: None,
    ) -> None:
        self._config = config
        self._cache = cache
        self._on_reply = on_reply
        api_key = (os.environ.get(API_KEY) or "").strip() or None
        self.endpoints = Endpoints(config.base_url, api_key, config.attempts, config.deadline)
        self._meter = JudgeMeter()
        self._name: str | None = None
        self._naming = asyncio.Lock()
        self._words = in_words(config)
        self._token = in_one_token(config)
        self._encoder = ImageEncoder(config.image_format)
        self._slots = asyncio.Semaphore(config.concurrency)
        self.served: set[str] = set()
        """Other names than the one it is asked by that servers gave the model in their replies."""
        self._refusals = 0
        self._refusal = ""
        self._in_flight: dict[str, asyncio.Task[Reply | Unavailable]] = {}

    @property
    def counters(self) -> JudgeCounters:
        """What happened so far."""
        return self._meter.counters

    def step(self) -> JudgeStep:
        """What happened since the last call."""
        return self._meter.read(self.endpoints.counts())

    async def model_name(self) -> str:
        """The model that is asked. Raises `UserError` if a server does not answer or does not have it."""
        if self._name is None:
            async with self._naming:
                self._name = self._name or await self.endpoints.open(self._config.model)
        return self._name

    async def ask(
        self, text: str, images: list[Image.Image], accept: Callable[[str], bool] = bool, *, one_token: bool = False
    ) -> Reply | Unavailable:
        """Put one question, to be answered in words; with `one_token` by the probabilities of the reply's first token,
        a JSON list of [token, log-probability] of the likeliest.

        text: the question. images: follow it, in this order. accept: says whether a reply can be used; the last one is
        returned even if not, and only one that can be is cached. Equal questions need an equal `accept`.
        Raises `UserError` as `model_name` does, at the first ask only.
        """
        model = await self.model_name()
        self.counters.asks += 1
        mode = self._token if one_token else self._words
        rgb = [to_rgb(image) for image in images]
        digests = [pixel_digest(image) for image in rgb]
        key = reply_key(model, text, digests, self._encoder.image_format, mode)
        reply: Reply | Unavailable
        kept = None if self._cache is None else self._cache.get(key)
        if kept is not None and accept(kept):
            self.counters.cache_hits += 1
            reply = Reply(kept)
            if self._cache is not None and (served := self._cache.served(key)):
                self.served.add(served)
        else:
            task = self._in_flight.get(key)
            if task is None:
                task = asyncio.create_task(self._send(mode, key, text, rgb, digests, accept))
                self._in_flight[key] = task
                task.add_done_callback(lambda _: self._in_flight.pop(key))
            else:
                self.counters.shared += 1
            # Shielded: whoever else waits for this reply still gets it when this caller is cancelled.
            reply = await asyncio.shield(task)
        if isinstance(reply, str):
            self._on_reply(len(images), reply)
        return reply

    async def aclose(self) -> None:
        """Cancel what is under way and close the connections."""
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.endpoints.aclose()

    async def _send(
        self,
        mode: RequestMode,
        key: str,
        text: str,
        images: list[Image.Image],
        digests: list[str],
        accept: Callable[[str], bool],
    ) -> Reply | Unavailable:
        """What comes of one ask: the first reply that `accept` takes, or the last of all, or why there is none."""

        served: str | None = None

        def read(response: Any) -> Reply:
            nonlocal served
            reply = mode.read(response)
            self._count_tokens(response)
            name = response.get("model")
            served = shortened(name) if isinstance(name, str) and name != self._name else None
            return reply

        reply = Reply()
        async with self._slots:
            if self._refusals >= MOST_REFUSED and self.counters.answered + self.counters.unparsable == 0:
                return self._unavailable(self._refusal, refused=True)
            with self._meter.ask_under_way():
                clock = asyncio.get_running_loop().time
                until = clock() + self._config.deadline
                urls = [self._encoder.data_url(image, digest) for image, digest in zip(images, digests, strict=True)]
                parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
                messages = [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]
                try:
                    async with asyncio.timeout_at(until):
                        for turn in range(mode.turns):
                            self.counters.reasks += turn > 0
                            body = {"model": self._name, "messages": messages, **mode.settings(turn)}
                            reply = await self.endpoints.chat(body, read, until - clock(), self._count_retry)
                            usable = not reply.unusable and accept(reply)
                            if usable:
                                break
                except TimeoutError:
                    reason = f"no reply from {self.endpoints.shown} within {self._config.deadline:g} s"
                    return self._unavailable(reason)
                except FAILURES as error:
                    reason = self.endpoints.reason(error)
                    if is_transient(error):
                        return self._unavailable(reason)
                    self._refusals += 1
                    self._refusal = reason + (_ADVICE if _FIELD_REFUSED.search(reason) else "")
                    return self._unavailable(self._refusal, refused=True)
        if not usable:
            self.counters.unparsable += 1
            return reply
        self.counters.answered += 1
        if served:
            self.served.add(served)
        if self._cache is not None:
            self._cache.put(key, reply, served)
        return reply

    def _count_retry(self, _: RetryCallState) -> None:
        self.counters.retries += 1

    def _count_tokens(self, response: Any) -> None:
        usage = response.get("usage")
        if isinstance(usage, dict):
            self.counters.prompt_tokens += _count(usage.get("prompt_tokens"))
            self.counters.completion_tokens += _count(usage.get("completion_tokens"))

    def _unavailable(self, reason: str, refused: bool = False) -> Unavailable:
        self.counters.unavailable += 1
        return Unavailable(reason, refused)


def reply_key(model: str, text: str, digests: Sequence[str], image_format: str, mode: RequestMode) -> str:
    """The key by which a `ReplyCache` keeps the reply to a question. digests: of the images' pixels, in their order."""
    question = [[model, text, list(digests), image_format], mode.identity]
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()


def in_words(config: JudgeConfig) -> RequestMode:
    """The whole reply. The first turn has the config's temperature and seed; further turns are warmer and have other
    seeds."""
    decisive = config.decisive()

    def settings(turn: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"max_tokens": config.max_tokens, "seed": config.seed + turn}
        if config.temperature is not None:
            asked["temperature"] = max(config.temperature, REASK_TEMPERATURE) if turn else config.temperature
        return _renamed({name: value for name, value in asked.items() if name not in config.omit}, config)

    def read(response: Any) -> Reply:
        return _text(response, config.max_tokens)

    identity = [decisive[name] for name in ("temperature", "max_tokens", "seed")]
    return RequestMode(1 + config.reasks, settings, identity, read)


def in_one_token(config: JudgeConfig) -> RequestMode:
    """The reply is JSON: a list of [token, log-probability in nats] of the likeliest first tokens."""
    settings = _renamed({"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}, config)
    return RequestMode(1, lambda turn: settings, ["one token", TOP_LOGPROBS], _probabilities)


def _renamed(settings: dict[str, Any], config: JudgeConfig) -> dict[str, Any]:
    return {config.max_tokens_name if name == "max_tokens" else name: value for name, value in settings.items()}


def _text(response: Any, max_tokens: int = 1) -> Reply:
    """The text of a chat completion, "" where the model gave none, with the server's own reason for its end.

    max_tokens: the limit that was asked for. Raises `BrokenReply`.
    """
    try:
        choice = response["choices"][0]
        message = choice["message"]
        content = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BrokenReply(f"the reply is not a chat completion{_said_instead(response)}") from None
    refusal = message.get("refusal")
    if isinstance(content, list):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        if not all(isinstance(part, dict) for part in parts):
            raise BrokenReply("the reply's content is not text")
        refusal = refusal or next((part["refusal"] for part in parts if isinstance(part.get("refusal"), str)), None)
        texts = [part.get("text") for part in parts if part.get("type") in ("text", "output_text")]
        content = "".join(text for text in texts if isinstance(text, str))
    if content is not None and not isinstance(content, str):
        raise BrokenReply("the reply's content is not text")
    reply = Reply(without_surrogates(content or ""))
    thought = any(message.get(name) for name in ("reasoning_content", "reasoning"))
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else ""
    if isinstance(refusal, str) and refusal.strip():
        reply.reason, reply.unusable = f"refused: {shortened(refusal)}", True
    elif any(word in finish.lower() for word in _FILTERED):
        reply.reason, reply.unusable = f"stopped by the server's filter ({shortened(finish)})", True
    elif choice.get("error") or any(word in finish.lower() for word in _BROKEN_OFF):
        raise BrokenReply(f"the reply was broken off ({shortened(finish)}){_said_instead(choice)}")
    elif any(word in finish.lower() for word in _CUT_OFF):
        thinking = thought or not reply.strip() or in_a_thought(reply, cut_off=True)
        reply.reason = f"cut off at max_tokens ({max_tokens}){' while thinking' if thinking else ''}"
        reply.unusable = in_a_thought(reply, cut_off=True)
    elif not reply.strip():
        said = "it called a tool" if message.get("tool_calls") or message.get("function_call") else "an empty reply"
        reply.reason = f"{said}{', all of its words are in its thought' if thought else ''}"
    return reply


def _said_instead(response: Any) -> str:
    """What a body that is no completion says of an error, if it does."""
    said = said_in(response)
    return f": {shortened(said)}" if said else ""


def _probabilities(response: Any) -> Reply:
    """The likeliest first tokens of a chat completion; an empty list where the model said nothing at all."""
    _text(response)
    reported = response["choices"][0].get("logprobs")
    if not isinstance(reported, dict) or not isinstance(reported.get("content"), list):
        raise NoProbabilities(
            "it does not report the probabilities of tokens (logprobs), which an expected score needs"
        )
    if not reported["content"]:
        return Reply("[]")
    try:
        likeliest = [(entry["token"], float(entry["logprob"])) for entry in reported["content"][0]["top_logprobs"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise BrokenReply("the reply's probabilities cannot be read") from None
    if not all(isinstance(token, str) and math.isfinite(logprob) for token, logprob in likeliest):
        raise BrokenReply("the reply's probabilities are no numbers")
    return Reply(json.dumps(likeliest))


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < MOST_TOKENS else 0
