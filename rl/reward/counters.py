"""How the asking goes, in figures for the training log."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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
    busy_seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The counters, and `latency_mean`: seconds per ask that was sent, from its slot to its end."""
        sent = self.answered + self.unparsable + self.unavailable
        return {**asdict(self), "latency_mean": self.busy_seconds / sent if sent else 0.0}
