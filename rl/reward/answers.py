"""Reading the scores out of a judge's answer, strictly.

Asked for is one JSON object with a key "score" that holds a list of numbers. Judges wrap it in a code fence or
in a sentence, use single quotes or leave a comma too many; these are read, since they leave no doubt. Whatever
leaves doubt is not read: a second object or list beside the first, a repeated key, a number out of range, in
words, in quotes or as a fraction, a list of another length, an object that was cut off. Such an answer is asked
for again, which is cheaper than a wrong reward. Nothing is clipped, filled in or rounded.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

LOWEST, HIGHEST = 0.0, 10.0
_TOKEN = re.compile(r"""\s+|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{}\[\]:,]|[^\s{}\[\]:,"']+""", re.DOTALL)


def parse_scores(answer: str, count: int = 2) -> tuple[float, ...] | None:
    """The `count` scores of `answer`, each within 0 to 10, in its order; None if it does not give exactly these."""
    start = answer.find("{")
    if start < 0:
        return None
    strict, end = _as_strict_json(answer, start)
    if re.search(r"[{}\[\]]", answer[:start] + answer[end:]):
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


def _as_strict_json(answer: str, start: int) -> tuple[str, int]:
    """The object that opens at `start`, with double quotes and without trailing commas, and the place after its
    end. If it never closes, the text is not JSON."""
    tokens: list[str] = []
    depth = 0
    place = start
    while match := _TOKEN.match(answer, place):
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
