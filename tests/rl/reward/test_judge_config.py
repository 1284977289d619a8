"""One configuration of a judge for all commands: flags, defaults, ranges."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import pytest

from emu3.errors import UserError
from rl.config import JudgeConfig
from rl.reward.config import ANNOTATE, DEFAULT, add_judge_flags, judge_from_flags

RL_ALONE = {"max_failed_share", "pause_seconds", "pauses"}
BY_THE_COMMAND = {"cache"}  # score has a flag, annotate a file of its own


def parsed(*words: str, default: JudgeConfig = DEFAULT, **more: Any) -> JudgeConfig | None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_judge_flags(parser.add_argument_group("judge"), default, **more)
    arguments = vars(parser.parse_args(words))
    judge = judge_from_flags(arguments, default)
    assert arguments == {}
    return judge


def test_every_setting_has_a_flag() -> None:
    """Guards: a setting that one command knows and the next does not, or that is read and not used."""
    given = {
        "--judge-url": ("base_url", "http://h/v1"),
        "--judge-model": ("model", "m"),
        "--prompts": ("prompts", "checkout"),
        "--judge-seed": ("seed", 3),
        "--judge-temperature": ("temperature", 0.7),
        "--judge-max-tokens": ("max_tokens", 50),
        "--judge-max-tokens-name": ("max_tokens_name", "max_completion_tokens"),
        "--judge-omit": ("omit", ("temperature", "seed")),
        "--judge-image-format": ("image_format", "jpeg"),
        "--judge-concurrency": ("concurrency", 2),
        "--judge-deadline": ("deadline", 9.5),
        "--judge-attempts": ("attempts", 1),
        "--judge-reasks": ("reasks", 0),
    }
    wanted = dict(given.values())
    words = [str(word) for flag, (_, value) in given.items() for word in (flag, *_listed(value))]
    assert parsed(*words) == JudgeConfig(**wanted)  # type: ignore[arg-type]
    assert wanted.keys() == {field.name for field in dataclasses.fields(JudgeConfig)} - RL_ALONE - BY_THE_COMMAND


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_what_is_not_given_is_the_default() -> None:
    """Guards: defaults that stand in two places; a judge where nobody named one."""
    assert parsed() is None
    assert parsed("--judge-url", "u") == JudgeConfig("u")
    assert parsed("--judge-url", "u", default=ANNOTATE) == JudgeConfig("u", image_format="jpeg")
    assert parsed("--judge-model", "m") == JudgeConfig("", "m")
    assert parsed("--judge-url", "u", "--judge-temperature", "none") == JudgeConfig("u", temperature=None)


@pytest.mark.parametrize("words", [(), ("--prompts", "x", "--judge-url", "u"), ("--judge-temperature", "warm")])
def test_flags_that_a_command_does_not_take(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Guards: a command that asks nobody, and a wording that it would not use."""
    with pytest.raises(SystemExit):
        parsed(*words, required=True, prompts=False)
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("concurrency", 0), ("attempts", 0), ("reasks", -1), ("max-tokens", 0), ("deadline", 0), ("deadline", "nan"),
     ("temperature", -1), ("temperature", "nan")],
)  # fmt: skip
def test_a_number_out_of_range_is_named_as_it_was_written(flag: str, value: Any) -> None:
    """Guards: a semaphore of 0, at which every ask waits for ever; a field's name for a flag's."""
    with pytest.raises(UserError, match=f"^--judge-{flag}: expected "):
        parsed("--judge-url", "u", f"--judge-{flag}", str(value))


def test_a_record_of_what_decides_a_reply() -> None:
    """Guards: results of two settings in one file, and a record that differs by what decides nothing."""
    judge = JudgeConfig("u", temperature=None, image_format="jpeg", concurrency=2, deadline=1.0, prompts="x")
    assert judge.changed(DEFAULT) == {"temperature": None, "image_format": "jpeg"}
    assert judge.changed(ANNOTATE) == {"temperature": None}
    assert JudgeConfig("u", omit=("seed",), max_tokens_name="n").changed(DEFAULT) == {"seed": None}
    assert JudgeConfig("u", "m", reasks=0).changed(DEFAULT) == {}
