"""Counters of a judge: sums over a run, and what one step adds to them.

A reading (`JudgeStep`) holds what happened since the one before, with every latency in it, so that the readings of
several ranks can be joined exactly. `busy_seconds` is wall time with at least one ask under way. What a trainer has to
wait for the judge beside it is the part of that time which sampling did not hide.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CHANCE = 0.01
MOST_LATENCIES = 100_000  # kept between two readings; a run that takes none keeps the newest


@dataclass
class JudgeCounters:
    """What happened so far. Every ask is one of: cache hit, shared, answered, unparsable, unavailable. Tokens are
    those that the server reports, 0 from one that reports none."""

    asks: int = 0
    cache_hits: int = 0
    shared: int = 0
    answered: int = 0
    unparsable: int = 0
    unavailable: int = 0
    retries: int = 0
    reasks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ask_seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The counters, and `latency_mean`: seconds per ask that was sent, from its slot to its end."""
        sent = self.answered + self.unparsable + self.unavailable
        return {**asdict(self), "latency_mean": self.ask_seconds / sent if sent else 0.0}


@dataclass(frozen=True)
class JudgeStep:
    """What happened between two readings.

    counts: `JudgeCounters` without its seconds. latencies: seconds of each ask that was sent and came to its end.
    busy_seconds: wall time with an ask under way. endpoints: requests, failures and outages by address.
    """

    counts: dict[str, int]
    latencies: list[float]
    busy_seconds: float
    endpoints: dict[str, dict[str, int]]


class JudgeMeter:
    """The counters of one judge, with the times that a reading needs. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counters = JudgeCounters()
        self._clock = clock
        self._latencies: deque[float] = deque(maxlen=MOST_LATENCIES)
        self._under_way = 0
        self._busy_since = 0.0
        self._busy_seconds = 0.0
        self._read: Counter[str] = Counter()
        self._read_endpoints: dict[str, Counter[str]] = {}

    @contextmanager
    def ask_under_way(self) -> Iterator[None]:
        """Measures an ask from here to its end, whatever that is."""
        start = self._clock()
        if self._under_way == 0:
            self._busy_since = start
        self._under_way += 1
        try:
            yield
        finally:
            end = self._clock()
            self._under_way -= 1
            if self._under_way == 0:
                self._busy_seconds += end - self._busy_since
            self._latencies.append(end - start)
            self.counters.ask_seconds += end - start

    def read(self, endpoints: dict[str, dict[str, int]]) -> JudgeStep:
        """What happened since the last reading. endpoints: each one's counts so far."""
        if self._under_way:
            now = self._clock()
            self._busy_seconds += now - self._busy_since
            self._busy_since = now
        counts = Counter({name: n for name, n in asdict(self.counters).items() if name != "ask_seconds"})
        step = JudgeStep(
            counts=_increase(counts, self._read),
            latencies=list(self._latencies),
            busy_seconds=self._busy_seconds,
            endpoints={url: _increase(n, self._read_endpoints.get(url, Counter())) for url, n in endpoints.items()},
        )
        self._read = counts
        self._read_endpoints = {url: Counter(n) for url, n in endpoints.items()}
        self._latencies.clear()
        self._busy_seconds = 0.0
        return step


def judge_metrics(steps: Sequence[JudgeStep], waited: Sequence[float]) -> dict[str, Any]:
    """The readings of all ranks as one flat dict for the log.

    waited: seconds that each rank did nothing but wait for its scores. Gives the counts, summed; latency_mean,
    latency_p50, latency_p95 and latency_max (seconds; None in a step that sent nothing); busy_seconds and wait_seconds
    (means over the ranks); hidden_share, the share of the judge's busy time in which the trainer was at work, 0 to 1,
    None where the judge was not busy; and with several endpoints `endpoints`, each one's counts.
    """
    latencies = [seconds for step in steps for seconds in step.latencies]
    p50, p95 = np.percentile(latencies, [50, 95]).tolist() if latencies else (None, None)
    busy = sum(step.busy_seconds for step in steps)
    endpoints = {
        url: _total(s.endpoints[url] for s in steps if url in s.endpoints) for s in steps for url in s.endpoints
    }
    return {
        **_total(step.counts for step in steps),
        "latency_mean": sum(latencies) / len(latencies) if latencies else None,
        "latency_p50": p50,
        "latency_p95": p95,
        "latency_max": max(latencies, default=None),
        "busy_seconds": busy / len(steps),
        "wait_seconds": sum(waited) / len(steps),
        "hidden_share": min(1.0, max(0.0, 1 - sum(waited) / busy)) if busy else None,
        **({"endpoints": endpoints} if len(endpoints) > 1 else {}),
    }


def _increase(now: dict[str, int], before: Counter[str]) -> dict[str, int]:
    return {name: count - before[name] for name, count in now.items()}


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        total = {name: total.get(name, 0) + count for name, count in part.items()}
    return total


def failures_with_a_task(counts: Mapping[str, tuple[int, int]]) -> str | None:
    """The task whose samples fail more often than the others', such as "counting 12 of 40, others 1 of 360"; None where
    that may be chance: by Fisher's exact test of each task against the others, one-sided, at 1% over all tasks
    (Bonferroni). counts: failed and all samples of each task. A mean over what was scored then is one over other tasks
    than were asked."""
    failed, total = (sum(column) for column in zip(*counts.values(), strict=True)) if counts else (0, 0)
    if len(counts) < 2 or not failed:
        return None
    from scipy import stats  # takes a second

    task = max(counts, key=lambda name: counts[name][0] / max(1, counts[name][1]))
    own, of = counts[task]
    rest = failed - own, total - of
    table = [[own, of - own], [rest[0], rest[1] - rest[0]]]
    if stats.fisher_exact(table, alternative="greater").pvalue * len(counts) >= CHANCE:
        return None
    return f"{task} {own} of {of}, others {rest[0]} of {rest[1]}"
