"""What can come of asking a judge: a number, an answer without a number, or no answer.

Only `Score` carries a number, so a caller cannot average, by accident, over samples that nobody judged. What
was not judged is masked out and counted by the caller; it is never zero.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A judged sample. value: 0 to 10, higher is better. parts: the figures behind it, same range."""

    value: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Unparsable:
    """The judge spoke, again and again, without giving the scores that were asked for. answer: its last words."""

    answer: str


@dataclass(frozen=True)
class Unavailable:
    """The judge gave no answer in time, or refused. reason: one line, free of secrets. refused: the request itself is
    at fault (a key, a size, a filter), so that asking again will not help."""

    reason: str
    refused: bool = False


Failure = Unparsable | Unavailable
Outcome = Score | Failure
Grade = float | Failure
"""One of the figures that a score is made of, 0 to 10, or why there is none."""
