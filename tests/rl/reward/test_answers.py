"""A corpus of answers, each with the scores that it gives, or None where it leaves doubt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.reward.answers import parse_scores

LINES = (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
CORPUS = [(entry["answer"], entry["scores"]) for entry in map(json.loads, LINES)]


@pytest.mark.parametrize(("answer", "scores"), CORPUS)
def test_corpus(answer: str, scores: list[float] | None) -> None:
    """Guards: a score that nobody gave (guessed, clipped, picked from two), and a plain one that is thrown away."""
    assert parse_scores(answer) == (None if scores is None else tuple(scores))


@pytest.mark.parametrize(
    "answer", ['{"score": [7, 8]' + ", " * 50_000, '{"a": ' + "[" * 50_000, "{" * 50_000, "'" * 50_000]
)
def test_endless_answers_end(answer: str) -> None:
    """Guards: a run that dies of a judge that repeats itself up to its token limit."""
    assert parse_scores(answer) is None
    assert parse_scores('{"a": ' + "[" * 50_000 + "]" * 50_000 + ', "score": [7, 8]}') is None
    assert parse_scores('{"score": [7, ' + "9" * 50_000 + "]}") is None


def test_count_is_what_was_asked_for() -> None:
    """Guards: a question with one score that is read as if it had two."""
    assert parse_scores('{"score": [7]}', count=1) == (7.0,)
    assert parse_scores('{"score": [7, 8]}', count=1) is None
