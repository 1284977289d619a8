"""Replies that are kept, and their file."""

from __future__ import annotations

import asyncio
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from emu3.errors import UserError
from rl.reward.cache import ReplyCache
from rl.reward.client import Judge
from rl.reward.config import JudgeConfig
from rl.reward.scores import Score
from rl.reward.viescore import ExpectedVieScore, Metric, VieScore, load_prompts


def test_answers_survive_the_process(tmp_path: Path) -> None:
    """Guards: answers that are written at the end only, or with newlines that split a line."""
    path = tmp_path / "new" / "answers.jsonl"
    first = ReplyCache(path)
    assert not path.parent.exists(), "a judge that turns out to be dead must leave no file"
    first.put("a", "line\nbreak ü")
    with ReplyCache(path) as second:
        assert second.get("a") == "line\nbreak ü" and second.get("b") is None


def test_replies_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    """Guards a key that means another question by then; lines from before there were versions are read."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a", "answer": "1"}\n')
    with ReplyCache(path) as cache:
        cache.put("b", "2")
    lines = path.read_text().splitlines()
    assert '"version": 2' in lines[1]
    with ReplyCache(path) as cache:
        assert (cache.get("a"), cache.get("b")) == ("1", "2")
    path.write_text(f"{lines[0]}\n{lines[1].replace('2', '3', 1)}\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"answers\.jsonl has format 3, this version of the project reads up to 2"):
        ReplyCache(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", range(1, 30))
def test_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path: Path, cut: int) -> None:
    """Guards: a crash in the middle of a write makes the file useless, or glues the next answer to the stump."""
    path = tmp_path / "answers.jsonl"
    with ReplyCache(path) as cache:
        cache.put("a", "1")
    whole = path.read_bytes()
    with ReplyCache(path) as cache:
        cache.put("b", "2 with some length")
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(path.read_bytes()) > len(whole)
    with ReplyCache(path) as cache:
        assert (cache.get("a"), cache.get("b")) == ("1", None)
        assert path.read_bytes() == whole
        cache.put("c", "3")
    with ReplyCache(path) as cache:
        assert (cache.get("a"), cache.get("c"), len(cache)) == ("1", "3", 2)


@pytest.mark.parametrize(
    "line",
    ["hello", "[1]", '{"key": "a"}', "3", '{"key": 3, "answer": "a"}', '{"key": "a", "answer": []}', "[" * 100_000],
)
def test_other_file_is_refused_and_left_alone(tmp_path: Path, line: str) -> None:
    """Guards: answers appended to a file that is something else."""
    path = tmp_path / "other.jsonl"
    path.write_text(f'{{"key": "a", "answer": "1"}}\n{line}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"other\.jsonl, line 2"):
        ReplyCache(path)
    assert path.read_bytes() == before


def test_memory_is_bounded_and_the_file_is_not(tmp_path: Path) -> None:
    """Guards: a long run that fills the memory with answers it will not see again."""
    path = tmp_path / "answers.jsonl"
    with ReplyCache(path, keep=3) as cache:
        for name in "abcdef":
            cache.put(name, name)
        assert [cache.get(name) for name in "abcdef"] == [None, None, None, "d", "e", "f"]
    with ReplyCache(path) as cache:
        assert len(cache) == 6


def test_a_full_disk_costs_the_file_and_not_the_run(tmp_path: Path, caplog: Any) -> None:
    """Guards: a run that ends because a side output cannot be written, a warning for each reply, and a line that is
    glued to half of another once there is room again."""
    path = tmp_path / "answers.jsonl"
    with ReplyCache(path) as cache:
        cache.put("a", "1")
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with ReplyCache(path) as cache:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
            for name in "bcd":
                cache.put(name, "2 with some length")
            assert path.read_bytes() == whole
            assert [cache.get(name) for name in "abcd"] == ["1", *["2 with some length"] * 3]
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            cache.put("e", "3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caplog.text.count("are kept in memory") == 1
    with ReplyCache(path) as cache:
        assert [cache.get(name) for name in "abcde"] == ["1", *["2 with some length"] * 3, "3"]


@pytest.mark.parametrize("place", ["/proc/nowhere/answers.jsonl", "/dev/full"])
def test_a_place_that_cannot_be_written_is_said_once(place: str, caplog: Any) -> None:
    """Guards: a folder that may only be read, found out by the first reply that was paid for."""
    with ReplyCache(Path(place)) as cache:
        for name in "abc":
            cache.put(name, name)
        assert [cache.get(name) for name in "abc"] == ["a", "b", "c"]
    assert caplog.text.count("are kept in memory") == 1


def test_a_folder_in_place_of_the_file_is_said_once(tmp_path: Path, caplog: Any) -> None:
    with ReplyCache(tmp_path) as cache:
        cache.put("a", "1")
        assert cache.get("a") == "1"
    assert "Is a directory" in caplog.text


def test_half_a_character_in_an_older_file_is_replaced(tmp_path: Path) -> None:
    """Guards: replies of a version that kept lone surrogates, which no scores file can hold."""
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a", "answer": "hat \\ud83c"}\n')
    with ReplyCache(path) as cache:
        assert cache.get("a") == "hat \ufffd"


def test_replies_of_an_older_version_are_found(stub: Any, image: Any, tmp_path: Path) -> None:
    """Guards what a long evaluation paid for. The file was written by commit a157375 for these three metrics, asked for
    "add a hat" about these images; another text, digest, order of settings or type of a number changes a key."""
    path = tmp_path / "answers.jsonl"
    shutil.copy(Path(__file__).parent / "older_replies.jsonl", path)

    async def score(judge: Judge, metric: Metric) -> Any:
        outcome = await metric.score("add a hat", image(0), image(1))
        await judge.aclose()
        return outcome

    published = {"image_format": "jpeg", "temperature": None, "seed": 3, "max_tokens": 77}
    values = []
    with ReplyCache(path) as cache:
        for settings in ({}, published):
            judge = Judge(JudgeConfig(stub.url, **settings), cache)  # type: ignore[arg-type]
            values.append(asyncio.run(score(judge, VieScore(judge, load_prompts()))))
        judge = Judge(JudgeConfig(stub.url), cache)
        values.append(asyncio.run(score(judge, ExpectedVieScore(judge))))
    assert [outcome.value for outcome in values if isinstance(outcome, Score)] == [4, 4, pytest.approx(70 / 9)]
    assert stub.bodies == []
