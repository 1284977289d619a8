"""A corpus of replies, each with the scores that it gives, or None where it leaves doubt; and scores by the
probabilities of a token."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest

from rl.reward.scores import LEAST_MASS, mean_score, parse_scores, published_scores

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


@pytest.mark.parametrize(
    "reply",
    ["{a " * 300_000, "[a " * 300_000, '{"score": [7, 8], "r": "' * 50_000, "I cannot " * 100_000, "a" * 10**6,
     '"score" : [ ' * 100_000, '{"score": [7, 8], "r": "' + "x [ score " * 100_000,
     "{left} " * 199 + "[7, 8]" * 50_000],
)  # fmt: skip
def test_a_long_reply_is_read_in_no_time(reply: str) -> None:
    """Guards: a second pass over the text for each brace in it, which takes minutes for a reply of a megabyte."""
    start = time.process_time()
    parse_scores(reply)
    published_scores(reply)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ('{"score": [7, 8]}', (7, 8)),
        ('Sure: {"reasoning": "a\nb", "score": [7, 8]} Bye', (7, 8)),
        ('<think>maybe {"score": [1, 2], "reasoning": "draft"} cut', (1, 2)),
        ('{score: [7, 8], reasoning: "x"}', (7, 8)),
        ("[7, 8]", (7, 8)),
        ("so [7, 8] it is", (7, 8)),
        ('{"score": [7, 8, 9]}', (7, 8)),
        ('{"score": 7}', None),
        ("7", None),
        ('{"score": [7, 8]} {"score": [7, 8]}', None),
        ('{"score": [7, 80]}', None),
        ("", None),
        ("9" * 9000, None),
        ("I cannot see the images.", None),
    ],
)
def test_published_rules(reply: str, scores: tuple[float, ...] | None) -> None:
    """Guards a number that is said to be by the published protocol and was read by other rules."""
    assert published_scores(reply) == scores


def test_one_score_by_the_published_rules() -> None:
    assert published_scores("7", 1) == published_scores('{"score": 7}', 1) == (7.0,)


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


def as_reply(tokens: dict[str, float]) -> str:
    return json.dumps([[token, math.log(share)] for token, share in tokens.items()])


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"9": 1.0}, 10.0),
        ({"0": 1.0}, 0.0),
        ({"4": 0.5, "5": 0.5}, 5.0),
        ({"8": 0.6, "6": 0.2, "Well": 0.2}, 10 / 9 * 7.5),  # the rest is left out, the digits scaled to 1
        ({" 9": 0.3, "9": 0.3, "9\n": 0.4}, 10.0),  # spellings of one digit
        ({"9": 0.6, "10": 0.4}, 10.0),  # no digit of this scale
        ({"9": 0.6, "²": 0.4}, 10.0),  # a digit to Python, not to us
    ],
)
def test_mean_under_the_digits(tokens: dict[str, float], expected: float) -> None:
    """Guards: the likeliest digit for the mean one, a mean over all mass, a scale that ends at 9."""
    value = mean_score(as_reply(tokens))
    assert value == pytest.approx(expected) and 0 <= value <= 10


def test_digits_that_were_not_meant_are_no_score() -> None:
    """Guards: a model that is about to refuse, whose third-likeliest token is a 1."""
    assert mean_score(as_reply({"I": 0.51, "7": 0.49})) is None
    assert mean_score(as_reply({"I": 0.5 - 1e-9, "7": LEAST_MASS + 1e-9})) is not None
    assert mean_score("[]") is None
