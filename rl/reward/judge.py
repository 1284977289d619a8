"""A judge behind the OpenAI protocol: questions with pictures in, answers or a reason for none out.

One ask is one question brought to an end: looked up in the cache, joined to an equal one that is under way, or
sent, tried again after failures that pass (`retry.py`) and asked anew, with another seed, while the answer
cannot be used. All of that happens under one deadline, which begins when the ask gets one of the `concurrency`
slots; an ask keeps its slot while it pauses, so that a server in trouble gets fewer requests.

The client is `openai`'s, by its plain `post` over its aiohttp transport: that costs 0.7 ms of CPU per request
where `chat.completions.create` over the default transport costs 2.3 ms, which counts when judge, trainer and
sampler share two cores. What is left out with it is the validation of the reply; `_content` does what is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import openai
from PIL import Image
from tenacity import RetryCallState

from emu3.errors import UserError
from rl.reward.cache import AnswerCache
from rl.reward.counters import JudgeCounters
from rl.reward.outcome import Unavailable
from rl.reward.pictures import ImageFormat, PictureEncoder, pixel_digest
from rl.reward.retry import BrokenReply, is_transient, retrying

# A judge at temperature 0 would repeat a useless answer word for word.
REASK_TEMPERATURE = 0.7


class Judge:
    """An OpenAI-compatible server and how to ask it. For one event loop; close it there with `aclose`.

    base_url: up to and with `/v1`; UserError if it is no http address. model: None takes the only one that the server
    has.
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
        self.url = address_without_secrets(base_url)
        self.counters = JudgeCounters()
        self._model = model
        self._name: str | None = None
        self._naming = asyncio.Lock()
        self._attempts = attempts
        self._deadline = deadline
        self._reasks = reasks
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._seed = seed
        self._cache = cache
        self._encoder = PictureEncoder(image_format)
        self._slots = asyncio.Semaphore(concurrency)
        self._in_flight: dict[str, asyncio.Task[str | Unavailable]] = {}
        self._api_key = os.environ.get(api_key_env) or "none-needed"
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=self._api_key,
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAioHttpClient(),
        )

    async def model_name(self) -> str:
        """The model that is asked. Raises `UserError` if the server does not answer or does not have it."""
        if self._name is None:
            async with self._naming:
                self._name = self._name or self._choose(await self._served_models())
        return self._name

    async def ask(
        self, text: str, images: list[Image.Image], accept: Callable[[str], bool] = bool
    ) -> str | Unavailable:
        """Put one question.

        text: the question. images: follow it, in this order. accept: says whether an answer can be used; the
        last one is returned even if not, and only one that can be is cached. Equal questions need an equal `accept`.
        Raises `UserError` as `model_name` does, at the first ask only.
        """
        model = await self.model_name()
        self.counters.asks += 1
        pictures = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        digests = [pixel_digest(picture) for picture in pictures]
        key = self._key(model, text, digests)
        if self._cache is not None and (answer := self._cache.get(key)) is not None and accept(answer):
            self.counters.cache_hits += 1
            return answer
        task = self._in_flight.get(key)
        if task is None:
            task = asyncio.create_task(self._ask_server(key, text, pictures, digests, accept))
            self._in_flight[key] = task
            task.add_done_callback(lambda _: self._in_flight.pop(key))
        else:
            self.counters.shared += 1
        # Shielded: whoever else waits for this answer still gets it when this caller is cancelled.
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Cancel what is under way and close the connections."""
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _key(self, model: str, text: str, digests: list[str]) -> str:
        question = [model, text, digests, self._encoder.image_format]
        sampling = [self._temperature, self._max_tokens, self._seed]
        return hashlib.sha256(json.dumps([question, sampling]).encode()).hexdigest()

    async def _ask_server(
        self, key: str, text: str, pictures: list[Image.Image], digests: list[str], accept: Callable[[str], bool]
    ) -> str | Unavailable:
        async with self._slots:
            loop = asyncio.get_running_loop()
            start = loop.time()
            content: list[dict[str, Any]] = [{"type": "text", "text": text}]
            for picture, digest in zip(pictures, digests, strict=True):
                url = self._encoder.data_url(picture, digest)
                content.append({"type": "image_url", "image_url": {"url": url}})
            try:
                async with asyncio.timeout(self._deadline):
                    answer = await self._acceptable_answer(content, accept, start + self._deadline)
            except TimeoutError:
                return self._unavailable(f"no answer from {self.url} within {self._deadline:g} s")
            except (openai.OpenAIError, BrokenReply) as error:
                return self._unavailable(self._reason(error), refused=not is_transient(error))
            finally:
                self.counters.busy_seconds += loop.time() - start
        if not accept(answer):
            self.counters.unparsable += 1
            return answer
        self.counters.answered += 1
        if self._cache is not None:
            self._cache.put(key, answer)
        return answer

    async def _acceptable_answer(
        self, content: list[dict[str, Any]], accept: Callable[[str], bool], until: float
    ) -> str:
        answer = ""
        for turn in range(1 + self._reasks):
            self.counters.reasks += turn > 0
            body: dict[str, Any] = {
                "model": self._name,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": self._max_tokens,
                "seed": self._seed + turn,
            }
            if self._temperature is not None:
                body["temperature"] = max(self._temperature, REASK_TEMPERATURE) if turn else self._temperature
            answer = await self._retried(partial(self._complete, body), until - asyncio.get_running_loop().time())
            if accept(answer):
                break
        return answer

    async def _retried(self, request: Callable[[], Any], seconds: float) -> Any:
        def count(_: RetryCallState) -> None:
            self.counters.retries += 1

        return await retrying(self._attempts, seconds, count)(request)

    async def _complete(self, body: dict[str, Any]) -> str:
        try:
            reply: Any = await self._client.post("/chat/completions", cast_to=object, body=body)
        except ValueError as error:
            raise BrokenReply(f"the reply is not JSON: {error}") from None
        content = _content(reply)
        usage = reply.get("usage")
        if isinstance(usage, dict):
            self.counters.prompt_tokens += _count(usage.get("prompt_tokens"))
            self.counters.completion_tokens += _count(usage.get("completion_tokens"))
        return content

    async def _served_models(self) -> list[str]:
        try:
            async with asyncio.timeout(self._deadline):
                reply = await self._retried(partial(self._client.get, "/models", cast_to=object), self._deadline)
            return [model["id"] for model in reply["data"]]
        except TimeoutError:
            reason = f"no answer within {self._deadline:g} s"
        except openai.OpenAIError as error:
            reason = self._reason(error)
        except (ValueError, TypeError, KeyError):
            reason = "its list of models (/models) cannot be read"
        raise UserError(f"the judge at {self.url} cannot be used: {reason}")

    def _choose(self, served: list[str]) -> str:
        if self._model is None and len(served) != 1:
            raise UserError(f"the judge at {self.url} has {len(served)} models, name one: {', '.join(served)}")
        if self._model is not None and self._model not in served:
            raise UserError(f"the judge at {self.url} has no model {self._model}, only: {', '.join(served)}")
        return self._model or served[0]

    def _unavailable(self, reason: str, refused: bool = False) -> Unavailable:
        self.counters.unavailable += 1
        return Unavailable(reason, refused)

    def _reason(self, error: Exception) -> str:
        """One line about a failed request. The key is taken out before anything is cut off: servers quote it."""
        if isinstance(error, openai.APIStatusError):
            told = error.body.get("message") if isinstance(error.body, dict) else error.response.text
            text = f"HTTP {error.status_code}: {told or error.response.reason_phrase}"
        else:
            text = str(error.__cause__ or error)
        text = text.replace(self._api_key, "[key]")
        return re.sub(r"\s+", " ", text)[:300]


def address_without_secrets(base_url: str) -> str:
    """A judge's address as it may be shown: without user and password. Raises UserError if it is no http address."""
    shown = re.sub("//[^/]*@", "//", base_url)
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"the judge's address {shown!r} is none: want http://HOST:PORT/v1")
    return shown


def _content(reply: Any) -> str:
    """The answer's text in a chat completion, "" where the model gave none. Raises `BrokenReply`."""
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise BrokenReply("the reply is not a chat completion") from None
    if content is not None and not isinstance(content, str):
        raise BrokenReply("the reply's content is not text")
    return content or ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
