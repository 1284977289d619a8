"""One server behind the OpenAI protocol: its connection, its load, and whether it is in the rotation.

The client is `openai`'s, by its plain `post` over its aiohttp transport: that costs 0.7 ms of CPU per request
where `chat.completions.create` over the default transport costs 2.3 ms, which counts when judge, trainer and
sampler share two cores. What is left out with it is the validation of the reply; its readers do what is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import Any
from urllib.parse import urlsplit

import openai

from emu3.errors import UserError
from rl.reward.manners import NoProbabilities
from rl.reward.retry import BrokenReply

FIRST_PAUSE = 0.5
"""Seconds until a server that left the rotation is looked after."""
CHECK_TIMEOUT = 20.0
"""Seconds for a health check: a server that takes in hundreds of pictures may be slow to answer."""
FAILURES = (openai.OpenAIError, BrokenReply, NoProbabilities)
"""What a request can end with."""

_log = logging.getLogger(__name__)


class Endpoint:
    """One server, by its address up to and with `/v1`; `url` is the address as it may be shown.

    in_flight: requests that it has. in_rotation: whether it is given any while others are there. pause: seconds until
    the next check when it is out. counts: requests, failures (of requests), outages (how often it left the rotation).
    """

    def __init__(self, address: str, api_key: str) -> None:
        self.url = shown_addresses(address)
        self.in_flight = 0
        self.in_rotation = True
        self.pause = FIRST_PAUSE
        self.counts = {"requests": 0, "failures": 0, "outages": 0}
        self._left = asyncio.Event()
        self._requests: set[asyncio.Task[Any]] = set()
        self._client = openai.AsyncOpenAI(
            base_url=address,
            api_key=api_key,
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAioHttpClient(),
        )

    async def chat(self, body: dict[str, Any]) -> Any:
        """The reply to a chat request, as parsed JSON. Raises one of `FAILURES`."""
        self.in_flight += 1
        self.counts["requests"] += 1
        request = asyncio.create_task(self._post(body))
        self._requests.add(request)
        try:
            return await request
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the ask is cancelled, not only its request here
                raise
            raise BrokenReply(f"{self.url} stopped answering") from None
        finally:
            self.in_flight -= 1
            self._requests.discard(request)

    async def models(self) -> list[str]:
        """Names of the models that it serves. Raises one of `FAILURES`."""
        try:
            reply: Any = await self._client.get("/models", cast_to=object)
            return [str(model["id"]) for model in reply["data"]]
        except (ValueError, TypeError, KeyError):
            raise BrokenReply("its list of models (/models) cannot be read") from None

    async def passes(self, model: str) -> bool:
        """The health check: it answers, and still serves `model`."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                return model in await self.models()
        except (TimeoutError, *FAILURES):
            return False

    def leave(self, reason: str) -> None:
        """Out of the rotation; what is in flight may still come to its end."""
        if self.in_rotation:
            self.in_rotation = False
            self.counts["outages"] += 1
            self._left.set()
            _log.warning("the judge at %s is out of the rotation: %s", self.url, reason)

    def lose(self) -> None:
        """Out, and what is in flight fails, to be tried elsewhere."""
        self.leave("it failed the health check")
        for request in self._requests:
            request.cancel()

    def come_back(self) -> None:
        if not self.in_rotation:
            self.in_rotation = True
            self._left.clear()
            _log.warning("the judge at %s is back", self.url)

    async def leaves_within(self, seconds: float) -> bool:
        """Whether it is out, or goes out in that time."""
        # Not `asyncio.wait_for`: in Python 3.11 it loses a cancellation that comes with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._left.wait()
        return not self.in_rotation

    async def aclose(self) -> None:
        await self._client.close()

    async def _post(self, body: dict[str, Any]) -> Any:
        try:
            return await self._client.post("/chat/completions", cast_to=object, body=body)
        except ValueError as error:
            raise BrokenReply(f"the reply is not JSON: {error}") from None


def shown_addresses(addresses: str) -> str:
    """One or several addresses, separated by commas, as they may be shown. Raises UserError if one is no http address,
    or holds a user and a password: these would go into every log, and the client sends its key in their place."""
    shown = re.sub("//[^/]*@", "//", addresses)
    if not all(_is_address(address.strip()) for address in addresses.split(",")):
        raise UserError(
            f"the judge's address {shown!r} is none: want http://HOST:PORT/v1, or several separated by commas, without "
            "user and password"
        )
    return shown


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(
            parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        return False
