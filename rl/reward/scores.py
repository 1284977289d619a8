"""What can come of asking a judge, and the numbers that its replies hold.

An outcome is a score, a reply without a score, or no reply. Only `Score` carries a number, so a caller cannot average,
by accident, over samples that nobody judged. What was not judged is masked out and counted by the caller; it is never
zero.

Scores are read out of a reply strictly. Asked for is one JSON object with a key "score" that holds a list of numbers.
Judges wrap it in a code fence or in a sentence, use single quotes or leave a comma too many; these are read, since they
leave no doubt. Whatever leaves doubt is not read: a second object or list beside the first, a repeated key, a number
out of range, in words, in quotes or as a fraction, a list of another length, an object that was cut off. Such a reply
is asked for again, which is cheaper than a wrong reward. Nothing is clipped, filled in or rounded.

The other reply is the probabilities of one token, which is a digit from 0 to 9; its score is the mean digit under them,
times 10/9. The scale ends at 9 because a digit is one token in every common vocabulary where "10" is one or two, and
all ten digits fit among the likeliest tokens that a server reports.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

LOWEST, HIGHEST = 0.0, 10.0
# The digits' probabilities together. Below, the model is about to say something else, and the digits that it did not
# mean would be scaled up to a score.
LEAST_MASS = 0.5
_TOKEN = re.compile(r"""\s+|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{}\[\]:,]|[^\s{}\[\]:,"']+""", re.DOTALL)


@dataclass(frozen=True)
class Score:
    """A judged sample. value: 0 to 10, higher is better. parts: the scores behind it, same range."""

    value: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Unparsable:
    """The judge replied, again and again, without giving the scores that were asked for. reply: its last words."""

    reply: str


@dataclass(frozen=True)
class Unavailable:
    """The judge gave no reply in time, or refused. reason: one line, free of secrets. refused: the request itself is
    at fault (a key, a size, a filter), so that asking again will not help."""

    reason: str
    refused: bool = False


Failure = Unparsable | Unavailable
Outcome = Score | Failure
PartScore = float | Failure
"""One of the numbers that a score is made of, 0 to 10, or why there is none."""


def parse_scores(reply: str, count: int = 2) -> tuple[float, ...] | None:
    """The `count` scores of `reply`, each within 0 to 10, in its order; None if it does not give exactly these."""
    start = reply.find("{")
    if start < 0:
        return None
    strict, end = _as_strict_json(reply, start)
    if re.search(r"[{}\[\]]", reply[:start] + reply[end:]):
        return None
    try:
        value = json.loads(strict, strict=False, object_pairs_hook=_unique_keys, parse_float=_exact)
    except (ValueError, RecursionError):
        return None
    scores = value.get("score")
    if not isinstance(scores, list) or len(scores) != count:
        return None
    if not all(type(score) in (int, float) and LOWEST <= score <= HIGHEST for score in scores):
        return None
    return tuple(float(score) for score in scores)


def mean_score(likeliest: str) -> float | None:
    """10/9 of the mean digit under the digits' probabilities, these scaled to a sum of 1.

    likeliest: JSON list of [token, log-probability]. A token is a digit with or without white space around it. None
    where the digits have less than `LEAST_MASS` together.
    """
    mass = [0.0] * 10
    for token, logprob in json.loads(likeliest):
        digit = token.strip()
        if len(digit) == 1 and digit in "0123456789":
            mass[int(digit)] += math.exp(min(0.0, logprob))
    total = sum(mass)
    if total < LEAST_MASS:
        return None
    return 10 / 9 * sum(digit * share for digit, share in enumerate(mass)) / total


def _as_strict_json(reply: str, start: int) -> tuple[str, int]:
    """The object that opens at `start`, with double quotes and without trailing commas, and the place after its
    end. If it never closes, the text is not JSON."""
    tokens: list[str] = []
    depth = 0
    place = start
    while match := _TOKEN.match(reply, place):
        token, place = match.group(), match.end()
        if token in "}]" and tokens[-1] == ",":
            tokens.pop()
        if not token.isspace():
            tokens.append(_double_quoted(token) if token[0] in "'\"" else token)
        depth += (token in "{[") - (token in "}]")
        if depth == 0:
            break
    return " ".join(tokens), place


def _double_quoted(token: str) -> str:
    body = re.sub(r"\\.|\"", lambda m: {"\\'": "'", '"': '\\"'}.get(m.group(), m.group()), token[1:-1], flags=re.DOTALL)
    return f'"{body}"'


def _exact(text: str) -> float:
    """The number as it is written. Raises `ValueError` where the float is another: 1e-400, 10.00000000000000000001."""
    number = float(text)
    if Decimal(repr(number)) != Decimal(text):
        raise ValueError(f"{text} is no float")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value
