"""The servers that answer for one judge, behind the OpenAI protocol: which of them gets a request, which are out of the
rotation, and which failures are worth another try.

A request goes to the server with the fewest in flight. A server that fails one leaves the rotation at once, and the
request is tried again elsewhere. Whoever is out is looked after with `GET /models`, after pauses that double until it
answers a request again, and comes back when it passes: it answers and still serves the same model. Servers in the
rotation are looked after too, so that one that hangs with its connections open is noticed; what it has in flight is
then taken from it. While all are out, requests go on as if all were in, and whoever answers is in again. So the outage
of all ends where the outage of a single server does, in the retries and the deadline of each ask; a single server is
not looked after.

Another try: no connection, a timeout, a reply that is no chat completion, and HTTP 408, 409, 425, 429 and 5xx; of these
the first four are a busy server, not a broken one, which stays in the rotation. Every other status is a mistake in the
request (key, model, size) that waiting does not mend, and so is a 429 for an account that is used up. The pause grows
exponentially with full jitter, on top of what the server asks for in `Retry-After`.

A server has to list its models (`GET /models`) only where the model is not named; what it lists has to have the model
that is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_base, wait_random_exponential

from emu3.errors import UserError
from rl.reward.scores import shortened, without_surrogates
from rl.reward.transport import BrokenReply, HttpError, Transport

BACKOFF: wait_base = wait_random_exponential(multiplier=0.5, max=20)
FIRST_PAUSE = 0.5
"""Seconds until a server that left the rotation is looked after."""
LONGEST_PAUSE = 30.0
CHECK_EVERY = 10.0
CHECK_TIMEOUT = 20.0
"""Seconds for a health check: a server that takes in hundreds of images may be slow to answer."""

BUSY = (408, 409, 425, 429)
"""Statuses of a server that would answer later."""
_USED_UP = re.compile(r"\b(?:quota|billing|credits?|balance|spend\w*)\b", re.IGNORECASE)
_PER_TIME = re.compile(r"\bper[ _-](?:second|minute|hour|day)|\brate.?limit|\b[RT]P[MD]\b", re.IGNORECASE)

T = TypeVar("T")
_log = logging.getLogger(__name__)


class NoProbabilities(Exception):
    """The server does not report the probabilities of tokens, and will not do so when it is asked again."""


FAILURES = (HttpError, BrokenReply, NoProbabilities)
"""What a request can end with."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HttpError):
        used_up = error.status == 429 and _USED_UP.search(str(error)) and not _PER_TIME.search(str(error))
        return (error.status in BUSY or error.status >= 500) and not used_up
    return isinstance(error, BrokenReply)


class Endpoint:
    """One server, by its address up to and with `/v1`; `url` is the address as it may be shown.

    in_flight: requests that it has. in_rotation: whether it is given any while others are there. pause: seconds until
    the next check when it is out. counts: requests, failures (of requests), outages (how often it left the rotation).
    """

    def __init__(self, address: str, api_key: str | None) -> None:
        self.url = shown_addresses(address)
        self.in_flight = 0
        self.in_rotation = True
        self.pause = FIRST_PAUSE
        self.counts = {"requests": 0, "failures": 0, "outages": 0}
        self._left = asyncio.Event()
        self._requests: set[asyncio.Task[Any]] = set()
        self.transport = Transport(address, api_key)
        self._api_key = api_key

    async def chat(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """What `read` finds in the server's response to a chat request, parsed JSON. Raises one of `FAILURES`."""
        self.in_flight += 1
        self.counts["requests"] += 1
        request = asyncio.create_task(self._exchange(body, read))
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

    async def _exchange(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        try:
            # Read in the step in which it is parsed, so that one parsed reply is in memory at a time, not all in
            # flight: a hostile one may be fifty megabytes.
            return read(await self.transport.post("/chat/completions", body))
        except FAILURES as error:
            error.__context__ = None  # so are the frames that led here
            raise error.with_traceback(None)  # noqa: B904

    async def models(self) -> list[str]:
        """Names of the models that it serves. Raises one of `FAILURES`."""
        try:
            names = [model["id"] for model in (await self.transport.get("/models"))["data"]]
            if all(isinstance(name, str) for name in names):
                return [without_surrogates(name) for name in names]
        except (TypeError, KeyError, IndexError):
            pass
        raise BrokenReply("its list of models (/models) cannot be read")

    async def serving(self, model: str | None) -> list[str]:
        """The models that it serves; `model` alone from a server that lists none but may have it. An address that lacks
        its /v1 gets it. Raises as `models` where the server could not be asked, or does not take the key."""
        try:
            return await self.models()
        except HttpError as error:
            if error.status == 404 and (served := await self._models_under_v1()) is not None:
                return served
            if model is None or error.status == 401 or (error.status >= 500 and error.status != 501):
                raise
        except BrokenReply as error:
            if model is None or error.__cause__ is not None:  # there is no connection
                raise
        return [model]

    async def _models_under_v1(self) -> list[str] | None:
        """What is served under the address with /v1, where requests go from then on; None if that is no address."""
        before = self.transport
        if before.address.endswith("/v1"):
            return None
        self.transport = Transport(f"{before.address}/v1", self._api_key)
        try:
            served = await self.models()
        except FAILURES:
            await self.transport.aclose()
            self.transport = before
            return None
        await before.aclose()
        _log.warning("the judge at %s answers under %s/v1, which is its address", self.url, self.url)
        self.url = f"{self.url}/v1"
        return served

    def leave(self, reason: str) -> None:
        """Out of the rotation; what is in flight may still come to its end."""
        if self.in_rotation:
            self.in_rotation = False
            self.counts["outages"] += 1
            self._left.set()
            _log.warning("the judge at %s is out of the rotation: %s", self.url, reason)

    def come_back(self) -> None:
        if not self.in_rotation:
            self.in_rotation = True
            self._left.clear()
            _log.warning("the judge at %s is back", self.url)

    async def look_after(self, model: str) -> None:
        """Takes itself out when it stops answering, and back in when it answers again; never ends."""
        while True:
            if await self._leaves_within(CHECK_EVERY):
                await asyncio.sleep(self.pause)
                self.pause = min(2 * self.pause, LONGEST_PAUSE)
                if await self._passes(model):
                    self.come_back()
                    continue
            elif await self._passes(model):
                continue
            self.leave("it failed the health check")
            for request in self._requests:  # they fail, to be tried elsewhere
                request.cancel()

    async def aclose(self) -> None:
        await self.transport.aclose()

    async def _passes(self, model: str) -> bool:
        """The health check: it answers, and still serves `model`."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                return model in await self.serving(model)
        except (TimeoutError, *FAILURES):
            return False

    async def _leaves_within(self, seconds: float) -> bool:
        """Whether it is out, or goes out in that time."""
        # Not `asyncio.wait_for`: in Python 3.11 it loses a cancellation that comes with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._left.wait()
        return not self.in_rotation


class Endpoints:
    """The servers at `addresses`, one or several separated by commas. For one event loop; close them there.

    attempts: tries per request. seconds: for the reply to the first question, which model it is. Raises UserError for
    what is no http address.
    """

    def __init__(self, addresses: str, api_key: str | None, attempts: int, seconds: float) -> None:
        self.shown = shown_addresses(addresses)
        self._all = [Endpoint(address.strip(), api_key) for address in addresses.split(",")]
        self._attempts = attempts
        self._seconds = seconds
        self._watchers: list[asyncio.Task[None]] = []

    async def open(self, model: str | None) -> str:
        """The model that all serve, `model` or the only one. From here on they are looked after.

        Raises UserError if one does not answer, does not have it, or has another: an address that is wrong shows at the
        start and not when the others fail.
        """
        found = await asyncio.gather(*(self._model_of(endpoint, model) for endpoint in self._all))
        if len(set(found)) > 1:
            served = ", ".join(f"{name} at {endpoint.url}" for name, endpoint in zip(found, self._all, strict=True))
            raise UserError(f"the judges are different models ({served}); a run needs one and the same")
        if len(self._all) > 1:
            self._watchers = [asyncio.create_task(endpoint.look_after(found[0])) for endpoint in self._all]
        return found[0]

    async def chat(
        self,
        body: dict[str, Any],
        read: Callable[[Any], T],
        seconds: float,
        before_retry: Callable[[RetryCallState], None],
    ) -> T:
        """What `read` finds in the response to a chat request, which is tried again after failures that pass.

        seconds: no try begins later. Raises the last of the `FAILURES`.
        """
        endpoint: Endpoint | None = None
        async for attempt in _retrying(self._attempts, seconds, before_retry):
            with attempt:
                endpoint = self._least_loaded(but=endpoint)
                try:
                    found = await endpoint.chat(body, read)
                except FAILURES as error:
                    endpoint.counts["failures"] += 1
                    busy = isinstance(error, HttpError) and error.status in BUSY
                    if self._watchers and is_transient(error) and not busy:
                        endpoint.leave(self.reason(error))
                    raise
                endpoint.pause = FIRST_PAUSE
                endpoint.come_back()
                return found
        raise AssertionError("the last failure is raised")

    def counts(self) -> dict[str, dict[str, int]]:
        """Each server's counts so far, by address."""
        return {endpoint.url: dict(endpoint.counts) for endpoint in self._all}

    def reason(self, error: BaseException) -> str:
        """One line about a failed request, without the key."""
        return shortened(str(error)) or type(error).__name__

    async def aclose(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for endpoint in self._all:
            await endpoint.aclose()

    def _least_loaded(self, but: Endpoint | None) -> Endpoint:
        """The one with the fewest requests in flight, of equal ones that with the fewest so far; `but` last of all."""
        candidates = [endpoint for endpoint in self._all if endpoint.in_rotation] or self._all
        others = [endpoint for endpoint in candidates if endpoint is not but]
        return min(others or candidates, key=lambda endpoint: (endpoint.in_flight, endpoint.counts["requests"]))

    async def _model_of(self, endpoint: Endpoint, model: str | None) -> str:
        async def serving() -> list[str]:
            return await endpoint.serving(model)

        try:
            async with asyncio.timeout(self._seconds):
                served: list[str] = await _retrying(self._attempts, self._seconds, lambda _: None)(serving)
        except TimeoutError:
            reason = f"no reply within {self._seconds:g} s"
            raise UserError(f"the judge at {endpoint.url} cannot be used: {reason}") from None
        except FAILURES as error:
            raise UserError(f"the judge at {endpoint.url} cannot be used: {self.reason(error)}") from None
        names = shortened(", ".join(served))
        if model is not None and model not in served:
            raise UserError(f"the judge at {endpoint.url} has no model {model}, only: {names}")
        if model is None and len(served) != 1:
            raise UserError(f"the judge at {endpoint.url} has {len(served)} models, name one: {names}")
        return model or served[0]


def shown_addresses(addresses: str) -> str:
    """One or several addresses, separated by commas, as they may be shown. Raises UserError if one is no http address,
    or holds a user and a password or a query: these would go into every log, and the client sends its key in their
    place."""
    shown = re.sub("//[^/]*@|[?#][^,]*", lambda found: "//" if found[0].startswith("/") else "", addresses)
    if not all(_is_address(address.strip()) for address in addresses.split(",")):
        raise UserError(
            f"the judge's address {shown!r} is no address: expected http://HOST:PORT/v1, or several, "
            "separated by commas, without user and password or anything behind a ?; a key goes into OPENAI_API_KEY"
        )
    return shown


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            and "@" not in parts.netloc
            and not (parts.query or parts.fragment)
        )
    except ValueError:
        return False


def _retrying(attempts: int, seconds: float, before_pause: Callable[[RetryCallState], None]) -> AsyncRetrying:
    """At most `attempts` tries; none that would begin after `seconds`. The last failure is raised as it is."""
    return AsyncRetrying(
        retry=retry_if_exception(is_transient),
        wait=_pause,
        stop=stop_after_attempt(attempts) | stop_before_delay(seconds),
        before_sleep=before_pause,
        reraise=True,
    )


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try: what the server asks for by `Retry-After` (seconds or a date) and the back-off."""
    error = state.outcome.exception() if state.outcome else None
    text = error.retry_after if isinstance(error, HttpError) else None
    requested = 0.0
    if text is not None:
        try:
            requested = float(text)
        except ValueError:
            requested = _seconds_until(text)
    return max(0.0, requested) + BACKOFF(state)


def _seconds_until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
