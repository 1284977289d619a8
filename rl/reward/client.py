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
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tenacity import RetryCallState

from rl.reward.cache import ImageEncoder, ReplyCache, pixel_digest
from rl.reward.config import JudgeConfig
from rl.reward.counters import JudgeCounters, JudgeMeter, JudgeStep
from rl.reward.endpoints import FAILURES, BrokenReply, Endpoints, NoProbabilities, is_transient
from rl.reward.scores import Unavailable

API_KEY = "OPENAI_API_KEY"
"""Environment variable that holds the key; servers of one's own need none."""
# The most that OpenAI and vLLM give.
TOP_LOGPROBS = 20
# A judge at temperature 0 would repeat a useless reply word for word.
REASK_TEMPERATURE = 0.7


@dataclass(frozen=True)
class RequestMode:
    """How to ask. turns: a reply that cannot be used is asked for again until there were so many. settings: of the
    request in a turn, beside model and messages. identity: what of them decides the reply, for the cache. read: the
    reply in a response; raises `BrokenReply` or `NoProbabilities`."""

    turns: int
    settings: Callable[[int], dict[str, Any]]
    identity: list[Any]
    read: Callable[[Any], str]


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
        api_key = os.environ.get(API_KEY) or "none-needed"
        self.endpoints = Endpoints(config.base_url, api_key, config.attempts, config.deadline)
        self._meter = JudgeMeter()
        self._name: str | None = None
        self._naming = asyncio.Lock()
        self._words = in_words(config)
        self._token = in_one_token()
        self._encoder = ImageEncoder(config.image_format)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._in_flight: dict[str, asyncio.Task[str | Unavailable]] = {}

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
    ) -> str | Unavailable:
        """Put one question, to be answered in words; with `one_token` by the probabilities of the reply's first token,
        a JSON list of [token, log-probability] of the likeliest.

        text: the question. images: follow it, in this order. accept: says whether a reply can be used; the last one is
        returned even if not, and only one that can be is cached. Equal questions need an equal `accept`.
        Raises `UserError` as `model_name` does, at the first ask only.
        """
        model = await self.model_name()
        self.counters.asks += 1
        mode = self._token if one_token else self._words
        rgb = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        digests = [pixel_digest(image) for image in rgb]
        question = [[model, text, digests, self._encoder.image_format], mode.identity]
        key = hashlib.sha256(json.dumps(question).encode()).hexdigest()
        reply: str | Unavailable
        kept = None if self._cache is None else self._cache.get(key)
        if kept is not None and accept(kept):
            self.counters.cache_hits += 1
            reply = kept
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
    ) -> str | Unavailable:
        """What comes of one ask: the first reply that `accept` takes, or the last of all, or why there is none."""

        def read(response: Any) -> str:
            reply = mode.read(response)
            self._count_tokens(response)
            return reply

        reply = ""
        async with self._slots:
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
                            if accept(reply):
                                break
                except TimeoutError:
                    reason = f"no reply from {self.endpoints.shown} within {self._config.deadline:g} s"
                    return self._unavailable(reason)
                except FAILURES as error:
                    return self._unavailable(self.endpoints.reason(error), refused=not is_transient(error))
        if not accept(reply):
            self.counters.unparsable += 1
            return reply
        self.counters.answered += 1
        if self._cache is not None:
            self._cache.put(key, reply)
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


def in_words(config: JudgeConfig) -> RequestMode:
    """The whole reply. The first turn has the config's temperature and seed; further turns are warmer and have other
    seeds."""

    def settings(turn: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"max_tokens": config.max_tokens, "seed": config.seed + turn}
        if config.temperature is not None:
            asked["temperature"] = max(config.temperature, REASK_TEMPERATURE) if turn else config.temperature
        return asked

    return RequestMode(1 + config.reasks, settings, [config.temperature, config.max_tokens, config.seed], _text)


def in_one_token() -> RequestMode:
    """The reply is JSON: a list of [token, log-probability in nats] of the likeliest first tokens."""
    settings = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return RequestMode(1, lambda turn: settings, ["one token", TOP_LOGPROBS], _probabilities)


def _text(response: Any) -> str:
    """The text of a chat completion, "" where the model gave none."""
    try:
        content = response["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise BrokenReply("the reply is not a chat completion") from None
    if content is not None and not isinstance(content, str):
        raise BrokenReply("the reply's content is not text")
    return content or ""


def _probabilities(response: Any) -> str:
    """The likeliest first tokens of a chat completion; an empty list where the model said nothing at all."""
    _text(response)
    reported = response["choices"][0].get("logprobs")
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


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
