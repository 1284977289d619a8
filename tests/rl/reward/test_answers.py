"""A corpus of answers, each with the scores that it gives, or None where it leaves doubt."""

from __future__ import annotations

import json
import re
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


def test_the_corpus_is_one() -> None:
    """Guards against answers that stand in it twice, or on one side only."""
    answers = [answer for answer, _ in CORPUS]
    assert len(set(answers)) == len(answers) >= 60
    assert min(sum(scores is None for _, scores in CORPUS), sum(scores is not None for _, scores in CORPUS)) >= 30


@pytest.mark.parametrize(("answer", "scores"), [(answer, scores) for answer, scores in CORPUS if scores is not None])
def test_a_cut_answer_never_gives_other_scores(answer: str, scores: list[float]) -> None:
    """Guards an answer that met its token limit, wherever that was: it gives what the whole gives, or nothing."""
    found = {parse_scores(answer[:end]) for end in range(len(answer))}
    assert found <= {None, tuple(scores)}


@pytest.mark.parametrize(("answer", "scores"), [(answer, scores) for answer, scores in CORPUS if scores is not None])
def test_scores_are_numbers_of_the_answer(answer: str, scores: list[float]) -> None:
    """Guards the promise that nothing is clipped, filled in or rounded: each score is written in the answer."""
    written = {float(number) for number in re.findall(r"-?[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?", answer)}
    read = parse_scores(answer)
    assert read is not None and set(read) <= written
