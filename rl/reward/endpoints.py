"""The servers that answer for one judge: which of them gets a request, and which are out of the rotation.

A request goes to the server with the fewest in flight. A server that fails one leaves the rotation at once, and the
request is tried again elsewhere. Whoever is out is looked after with `GET /models`, after pauses that double until it
answers a request again, and comes back when it passes: it answers and still serves the same model. Servers in the
rotation are looked after too, so that one that hangs with its connections open is noticed; what it has in flight is
then taken from it. 408 and 429 are a busy server, not a broken one: it stays.

While all are out, requests go on as if all were in, and whoever answers is in again. So the outage of all ends where
the outage of a single server does, in the retries and the deadline of each ask; a single server is not looked after.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

import openai
from tenacity import RetryCallState

from emu3.errors import UserError
from rl.reward import endpoint as one
from rl.reward.endpoint import FAILURES, Endpoint, shown_addresses
from rl.reward.retry import is_broken, retrying

CHECK_EVERY = 10.0
LONGEST_PAUSE = 30.0

Answer = TypeVar("Answer")


class Endpoints:
    """The servers at `addresses`, one or several separated by commas. For one event loop; close them there.

    attempts: tries per request. seconds: for the answer to the first question, which model it is. Raises UserError for
    what is no http address.
    """

    def __init__(self, addresses: str, api_key: str, attempts: int, seconds: float) -> None:
        self.shown = shown_addresses(addresses)
        self._all = [Endpoint(address.strip(), api_key) for address in addresses.split(",")]
        self._api_key = api_key
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
            self._watchers = [asyncio.create_task(_look_after(endpoint, found[0])) for endpoint in self._all]
        return found[0]

    async def chat(
        self,
        body: dict[str, Any],
        read: Callable[[Any], Answer],
        seconds: float,
        before_retry: Callable[[RetryCallState], None],
    ) -> Answer:
        """What `read` finds in the reply to a chat request, which is tried again after failures that pass.

        seconds: no try begins later. Raises the last of the `FAILURES`.
        """
        endpoint: Endpoint | None = None

        async def attempt() -> Answer:
            nonlocal endpoint
            endpoint = self._least_loaded(but=endpoint)
            try:
                answer = read(await endpoint.chat(body))
            except FAILURES as error:
                endpoint.counts["failures"] += 1
                if self._watchers and is_broken(error):
                    endpoint.leave(self.reason(error))
                raise
            endpoint.pause = one.FIRST_PAUSE
            endpoint.come_back()
            return answer

        return await retrying(self._attempts, seconds, before_retry)(attempt)

    def counts(self) -> dict[str, dict[str, int]]:
        """Each server's counts so far, by address."""
        return {endpoint.url: dict(endpoint.counts) for endpoint in self._all}

    def reason(self, error: BaseException) -> str:
        """One line about a failed request. The key is taken out before anything is cut off: servers quote it."""
        if isinstance(error, openai.APIStatusError):
            told = error.body.get("message") if isinstance(error.body, dict) else error.response.text
            text = f"HTTP {error.status_code}: {told or error.response.reason_phrase}"
        else:
            text = str(error.__cause__ or error) or type(error.__cause__ or error).__name__
        text = text.replace(self._api_key, "[key]")
        return re.sub(r"\s+", " ", text)[:300]

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
        try:
            async with asyncio.timeout(self._seconds):
                served: list[str] = await retrying(self._attempts, self._seconds, lambda _: None)(endpoint.models)
        except TimeoutError:
            reason = f"no answer within {self._seconds:g} s"
            raise UserError(f"the judge at {endpoint.url} cannot be used: {reason}") from None
        except FAILURES as error:
            raise UserError(f"the judge at {endpoint.url} cannot be used: {self.reason(error)}") from None
        names = ", ".join(served)
        if model is None and len(served) != 1:
            raise UserError(f"the judge at {endpoint.url} has {len(served)} models, name one: {names}")
        if model is not None and model not in served:
            raise UserError(f"the judge at {endpoint.url} has no model {model}, only: {names}")
        return model or served[0]


async def _look_after(endpoint: Endpoint, model: str) -> None:
    """Takes an endpoint out when it stops answering, and back in when it answers again."""
    while True:
        if await endpoint.leaves_within(CHECK_EVERY):
            await asyncio.sleep(endpoint.pause)
            endpoint.pause = min(2 * endpoint.pause, LONGEST_PAUSE)
            if await endpoint.passes(model):
                endpoint.come_back()
                continue
        elif await endpoint.passes(model):
            continue
        endpoint.lose()
