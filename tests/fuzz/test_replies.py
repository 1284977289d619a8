"""Replies of a judge: whatever it writes, there are the scores that were asked for, in range, or there are none."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from mutations import MANY_BRACKETS, damaged, with_another_value

from rl.reward.scores import mean_score, parse_scores

GOOD = {"reasoning": "The sky is {purple}, [7, 8] of it \u00e4.", "score": [7, 8.5]}
PIECES = st.sampled_from(
    [
        *('{"score": [7, 8]}', "[7, 8]", "{", "}", "[", "]", '"score"', ":", ",", "7", "8.5", "-0.0", "1e1", "1e400"),
        *("10.00000000000000000001", "NaN", "Infinity", "true", "null", "'score'", '"7"', "7/10", "\\", '"', "'", "\n"),
        *("```json", "```", "<think>", "</think>", "\ud800", "\x00", "\u2028", "１０", "٣", "// 7", "/* */", "score:"),
    ]
)
TEXTS = (
    st.lists(PIECES, max_size=14).map(" ".join)
    | st.lists(PIECES, max_size=14).map("".join)
    | with_another_value(GOOD).map(json.dumps)
    | damaged(json.dumps(GOOD).encode()).map(lambda data: data.decode(errors="surrogateescape"))
    | st.text()
    | st.just(MANY_BRACKETS)
    | st.just('{"a":' * 5_000)
    | st.just('{"score": [' + "9" * 5_000 + ", 1]}")
)


@given(TEXTS, st.integers(1, 3))
def test_scores_or_none(reply: str, count: int) -> None:
    """Guards: an exception in the middle of a step, a score out of range, a list of another length."""
    scores = parse_scores(reply, count)
    assert scores is None or (len(scores) == count and all(0 <= score <= 10 for score in scores))


@given(st.lists(st.tuples(st.text(max_size=3) | st.sampled_from("0123456789"), st.floats(allow_nan=False)), max_size=8))
def test_a_mean_is_in_range(likeliest: list[tuple[str, float]]) -> None:
    mean = mean_score(json.dumps(likeliest))
    assert mean is None or 0 <= mean <= 10 + 1e-9
