"""Which failures of a request are worth another try, and after what pause.

Another try: no connection, a timeout, a reply that is no chat completion, and HTTP 408, 429 and 5xx. Every
other status is a mistake in the request (key, model, size) that waiting does not mend. The pause grows
exponentially with full jitter, on top of what the server asks for in `Retry-After`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_base, wait_random_exponential

BACKOFF: wait_base = wait_random_exponential(multiplier=0.5, max=20)


class BrokenReply(Exception):
    """HTTP 200 with a body that is not a chat completion."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError | BrokenReply)


def is_broken(error: BaseException) -> bool:
    """Whether the server is to blame, and not only busy."""
    busy = isinstance(error, openai.APIStatusError) and error.status_code in (408, 429)
    return is_transient(error) and not busy


def requested_pause(error: BaseException | None) -> float:
    """Seconds that the server asks to wait by `Retry-After` (seconds or a date); 0 where it does not."""
    text = error.response.headers.get("retry-after") if isinstance(error, openai.APIStatusError) else None
    if text is None:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        return max(0.0, _seconds_until(text))


def _seconds_until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return 0.0


def pause(state: RetryCallState) -> float:
    """Seconds before the next try."""
    error = state.outcome.exception() if state.outcome else None
    return requested_pause(error) + BACKOFF(state)


def retrying(attempts: int, seconds: float, before_pause: Callable[[RetryCallState], None]) -> AsyncRetrying:
    """At most `attempts` tries; none that would begin after `seconds`. The last failure is raised as it is."""
    return AsyncRetrying(
        retry=retry_if_exception(is_transient),
        wait=pause,
        stop=stop_after_attempt(attempts) | stop_before_delay(seconds),
        before_sleep=before_pause,
        reraise=True,
    )
