"""What asking a judge cost: one line of usage.jsonl per run that sent anything."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

USAGE_FILE = "usage.jsonl"


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
