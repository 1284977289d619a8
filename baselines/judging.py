"""VIEScore of predictions: questions to the judge at a bounded pace, every reply kept word for word, and their cost.

The judge's client is the one of training (`rl.reward`). Around it stand a transcript, which hands each sample the
replies that its score was read from, a pace, which keeps the requests per minute below what a provider allows, and one
line of usage.jsonl for each run that sent anything.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from baselines.results.records import SCORED, UNAVAILABLE, UNPARSABLE, VIESCORE, Prediction, ScoredSample, scored_row
from emu3.tokenizer.images import read_image
from rl.reward.scorer import Scorer
from rl.reward.scores import Outcome, Score, Unavailable, Unparsable

# Images of this many samples are in memory at once: enough to keep every slot of the judge busy.
WINDOW = 256
QUESTIONS = 2
"""Questions that a VIEScore asks."""

USAGE_FILE = "usage.jsonl"

_TRANSCRIPT: ContextVar[dict[str, str]] = ContextVar("transcript")


def note_reply(images: int, reply: str) -> None:
    """Write a reply to the transcript of the sample that it is about: "sc" for the question with source and edit, "pq"
    for that with the edit alone. For `Judge`."""
    _TRANSCRIPT.get()["sc" if images > 1 else "pq"] = reply


class Pace:
    """Lets samples through so that no more than `per_minute` requests go out in a minute, spread evenly over it.

    counters: those of the scorer, by which questions that were answered from the cache cost nothing, and repeated
    requests count.
    """

    def __init__(
        self,
        per_minute: float,
        counters: Callable[[], dict[str, float]],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_second = per_minute / 60
        self._counters = counters
        self._clock = clock
        self._sleep = sleep
        self._start = clock()
        self._asked = 0

    def wait(self) -> None:
        """Return when the questions of one more sample fit."""
        while self._used() + QUESTIONS > QUESTIONS + self._per_second * (self._clock() - self._start):
            self._sleep(0.02)
        self._asked += QUESTIONS

    def _used(self) -> float:
        counters = self._counters()
        free = counters["cache_hits"] + counters["shared"]
        return self._asked - free + counters["retries"] + counters["reasks"]


def judge_rows(rows: list[Prediction], folder: Path, scorer: Scorer, pace: Pace | None) -> Iterator[ScoredSample]:
    """The rows' outcomes in their order, `WINDOW` of them under way. The judge of `scorer` tells `note_reply`; paths of
    the rows start from `folder`."""
    pending: deque[tuple[Prediction, dict[str, str], Future[Outcome]]] = deque()
    for row in rows:
        if len(pending) == WINDOW:
            first, answers, future = pending.popleft()
            yield scored(first, future.result(), answers)
        source, edited = (read_image(folder / name, str(folder / name)) for name in (row.source, row.edited))
        if pace is not None:
            pace.wait()
        transcript: dict[str, str] = {}
        # The scorer's loop runs each submission in the context that it was submitted from.
        _TRANSCRIPT.set(transcript)
        pending.append((row, transcript, scorer.submit(row.instruction, source, edited)))
    for row, answers, future in pending:
        yield scored(row, future.result(), answers)


def scored(row: Prediction, outcome: Outcome, answers: dict[str, str]) -> ScoredSample:
    """The row of the scores file for what came of a sample."""
    status, value, parts, detail = SCORED, None, None, None
    match outcome:
        case Score():
            value, parts = outcome.value, outcome.parts
        case Unparsable():
            status, detail = UNPARSABLE, outcome.reply
        case Unavailable():
            status, detail = UNAVAILABLE, outcome.reason
    kept: dict[str, str] = {name: answers[name] for name in ("sc", "pq") if name in answers}
    return scored_row(row, VIESCORE, status, value, parts=parts, answers=kept, detail=detail)


@dataclass(frozen=True)
class Usage:
    """Counts of one run. `requests` are what the judge got, repetitions included; tokens are None where it does not
    report them, `usd` is None without tokens or prices."""

    judge: str
    questions: int
    answered_before: int
    requests: int
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None


def usage_of(judge: str, counters: dict[str, float], prices: tuple[float, float] | None) -> Usage:
    """`counters` are the scorer's; `prices` are USD per million tokens of questions and of answers."""
    sent = counters["asks"] - counters["cache_hits"] - counters["shared"] + counters["retries"] + counters["reasks"]
    prompt, completion = (int(counters.get(name, 0)) or None for name in ("prompt_tokens", "completion_tokens"))
    usd = None
    if prices is not None and prompt is not None and completion is not None:
        usd = (prices[0] * prompt + prices[1] * completion) / 1e6
    return Usage(judge, int(counters["asks"]), int(counters["cache_hits"]), int(sent), prompt, completion, usd)


def note_usage(folder: Path, usage: Usage) -> None:
    """Tell it, and append it to the folder's file if anything was sent."""
    cost = f", {usage.usd:.4f} USD" if usage.usd is not None else ""
    print(f"{usage.judge}: {usage.questions} questions, {usage.answered_before} answered before{cost}")
    if usage.requests:
        with (folder / USAGE_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(usage)) + "\n")
