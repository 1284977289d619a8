"""A judge behind the OpenAI protocol: questions with pictures in, answers or a reason for none out.

One ask is one question brought to an end: looked up in the cache, joined to an equal one that is under way, or
sent (`endpoints.py`), tried again after failures that pass (`retry.py`) and asked anew while the answer cannot be used
(`manners.py`). All of that happens under one deadline, which begins when the ask gets one of the `concurrency`
slots; an ask keeps its slot while it pauses, so that a server in trouble gets fewer requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from PIL import Image
from tenacity import RetryCallState

from rl.reward.cache import AnswerCache
from rl.reward.counters import JudgeCounters, JudgeMeter, JudgeStep
from rl.reward.endpoint import FAILURES
from rl.reward.endpoints import Endpoints
from rl.reward.manners import Manner, in_one_token, in_words
from rl.reward.outcome import Unavailable
from rl.reward.pictures import ImageFormat, PictureEncoder, pixel_digest
from rl.reward.retry import is_transient


class Judge:
    """One or several OpenAI-compatible servers of one model, and how to ask it. For one event loop; close it there
    with `aclose`.

    base_url: address up to and with `/v1`, several separated by commas; UserError if one is no http address.
    model: None takes the only one that is served.
    api_key_env: environment variable that holds the key; servers of one's own need none.
    concurrency: asks in flight. attempts: tries per request. deadline: seconds for an ask once it has a slot.
    reasks: how often an answer that cannot be used is asked for again.
    temperature: None leaves it to the server, as the published runs did. max_tokens: of the answer. seed: of
    the first request of each ask, later ones count up. image_format: "png" or "jpeg". cache: None keeps nothing.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 64,
        attempts: int = 5,
        deadline: float = 120.0,
        reasks: int = 2,
        temperature: float | None = 0.0,
        max_tokens: int = 1400,
        seed: int = 0,
        image_format: ImageFormat = "png",
        cache: AnswerCache | None = None,
    ) -> None:
        api_key = os.environ.get(api_key_env) or "none-needed"
        self.endpoints = Endpoints(base_url, api_key, attempts, deadline)
        self._meter = JudgeMeter()
        self._model = model
        self._name: str | None = None
        self._naming = asyncio.Lock()
        self._deadline = deadline
        self._in_words = in_words(temperature, max_tokens, seed, reasks)
        self._in_one_token = in_one_token()
        self._cache = cache
        self._encoder = PictureEncoder(image_format)
        self._slots = asyncio.Semaphore(concurrency)
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
                self._name = self._name or await self.endpoints.open(self._model)
        return self._name

    async def ask(
        self, text: str, images: list[Image.Image], accept: Callable[[str], bool] = bool
    ) -> str | Unavailable:
        """Put one question, to be answered in words.

        text: the question. images: follow it, in this order. accept: says whether an answer can be used; the
        last one is returned even if not, and only one that can be is cached. Equal questions need an equal `accept`.
        Raises `UserError` as `model_name` does, at the first ask only.
        """
        return await self._ask(self._in_words, text, images, accept)

    async def ask_for_token(
        self, text: str, images: list[Image.Image], accept: Callable[[str], bool] = bool
    ) -> str | Unavailable:
        """Put one question, to be answered by the probabilities of the answer's first token: a JSON list of
        [token, log-probability] of the likeliest. Otherwise as `ask`."""
        return await self._ask(self._in_one_token, text, images, accept)

    async def aclose(self) -> None:
        """Cancel what is under way and close the connections."""
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.endpoints.aclose()

    async def _ask(
        self, manner: Manner, text: str, images: list[Image.Image], accept: Callable[[str], bool]
    ) -> str | Unavailable:
        model = await self.model_name()
        self.counters.asks += 1
        pictures = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        digests = [pixel_digest(picture) for picture in pictures]
        question = [[model, text, digests, self._encoder.image_format], manner.identity]
        key = hashlib.sha256(json.dumps(question).encode()).hexdigest()
        if self._cache is not None and (answer := self._cache.get(key)) is not None and accept(answer):
            self.counters.cache_hits += 1
            return answer
        task = self._in_flight.get(key)
        if task is None:
            task = asyncio.create_task(self._ask_server(manner, key, text, pictures, digests, accept))
            self._in_flight[key] = task
            task.add_done_callback(lambda _: self._in_flight.pop(key))
        else:
            self.counters.shared += 1
        # Shielded: whoever else waits for this answer still gets it when this caller is cancelled.
        return await asyncio.shield(task)

    async def _ask_server(
        self,
        manner: Manner,
        key: str,
        text: str,
        pictures: list[Image.Image],
        digests: list[str],
        accept: Callable[[str], bool],
    ) -> str | Unavailable:
        async with self._slots:
            with self._meter.ask_under_way():
                until = asyncio.get_running_loop().time() + self._deadline
                content: list[dict[str, Any]] = [{"type": "text", "text": text}]
                for picture, digest in zip(pictures, digests, strict=True):
                    url = self._encoder.data_url(picture, digest)
                    content.append({"type": "image_url", "image_url": {"url": url}})
                try:
                    async with asyncio.timeout_at(until):
                        answer = await self._acceptable_answer(manner, content, accept, until)
                except TimeoutError:
                    return self._unavailable(f"no answer from {self.endpoints.shown} within {self._deadline:g} s")
                except FAILURES as error:
                    return self._unavailable(self.endpoints.reason(error), refused=not is_transient(error))
        if not accept(answer):
            self.counters.unparsable += 1
            return answer
        self.counters.answered += 1
        if self._cache is not None:
            self._cache.put(key, answer)
        return answer

    async def _acceptable_answer(
        self, manner: Manner, content: list[dict[str, Any]], accept: Callable[[str], bool], until: float
    ) -> str:
        def read(reply: Any) -> str:
            answer = manner.read(reply)
            self._count_tokens(reply)
            return answer

        answer = ""
        for turn in range(manner.turns):
            self.counters.reasks += turn > 0
            body = {"model": self._name, "messages": [{"role": "user", "content": content}], **manner.settings(turn)}
            left = until - asyncio.get_running_loop().time()
            answer = await self.endpoints.chat(body, read, left, self._count_retry)
            if accept(answer):
                break
        return answer

    def _count_retry(self, _: RetryCallState) -> None:
        self.counters.retries += 1

    def _count_tokens(self, reply: Any) -> None:
        usage = reply.get("usage")
        if isinstance(usage, dict):
            self.counters.prompt_tokens += _count(usage.get("prompt_tokens"))
            self.counters.completion_tokens += _count(usage.get("completion_tokens"))

    def _unavailable(self, reason: str, refused: bool = False) -> Unavailable:
        self.counters.unavailable += 1
        return Unavailable(reason, refused)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
