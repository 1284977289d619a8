"""Options: old names, help that says what is there by default, and what is read before anything large."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from emu3.errors import UserError
from emu3.flags import CommandParser
from emu3.train_image_editing.arguments import check_sft, parse_convert, parse_prepare, parse_sft
from shapes.command_line import COMMANDS

ONE_SPELLING = {"--model", "--vision", "--data", "--output", "--judge-url", "--image-area"}
OTHER_SPELLINGS = {
    *("--model-path", "--model-name-or-path", "--vision-path", "--dataset-name", "--output-path", "--output-dir"),
    *("--judge", "--api-base", "--train-data"),
}


def type_in(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])


class Found(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Help for each option, with its default or that it is required; and the words that all commands share."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Found(parser)

    monkeypatch.setattr(CommandParser, "parse_known_args", stop)
    type_in(monkeypatch)
    place = COMMANDS[name].arguments or f"{COMMANDS[name].module}:main"
    module, _, function = place.partition(":")
    with pytest.raises(Found) as found:
        getattr(importlib.import_module(module), function)()
    parser = found.value.parser
    parser.format_help()  # completes the texts
    for action in parser._actions:
        if action.help is argparse.SUPPRESS:
            continue
        assert action.help, action
        if action.option_strings and action.nargs != 0:
            assert "default" in action.help or "required" in action.help, action
        assert not OTHER_SPELLINGS & set(action.option_strings), action
    assert not [action for action in parser._actions if set(action.option_strings) & ONE_SPELLING and not action.help]


def test_old_names_keep_working(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts of others: dashes and underscores, with a space or an equals sign."""
    type_in(
        monkeypatch, "--data", "d", "--output", "o", "--vision", "v", "--edited-image-key", "e", "--image-area", "9"
    )
    present = parse_prepare()
    for old in (
        ["--dataset-name", "d", "--output-path", "o", "--model-path", "v", "--edited-image", "e", "--image_area", "9"],
        ["--dataset_name=d", "--output_path=o", "--model_path=v", "--edited_image_key=e", "--image-area=9"],
    ):
        type_in(monkeypatch, *old)
        assert parse_prepare() == present
    type_in(monkeypatch, "--data", "d", "--output-path", "o", "--model-path", "v")
    assert parse_convert().model_path == "v"


def test_sft_takes_its_own_names_and_the_trainer_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rest = ["--max_steps", "7", "--use_cpu", "--coefficients", "1", "6"]
    type_in(monkeypatch, "--model", "m", "--data", "a", "b", "--output", str(tmp_path), *rest)
    ours, trainer = parse_sft(TrainingArguments)
    assert (ours.model_name_or_path, ours.train_data, ours.coefficients) == ("m", ["a", "b"], [1.0, 6.0])
    assert (trainer.output_dir, trainer.max_steps) == (str(tmp_path), 7)
    for old in (
        ("--model_name_or_path", "--train_data", "--output_dir"),
        ("--model-name-or-path", "--train-data", "--output-dir"),
    ):
        type_in(monkeypatch, old[0], "m", old[1], "a", "b", old[2], str(tmp_path), *rest)
        again, trainer = parse_sft(TrainingArguments)
        assert again == ours and trainer.output_dir == str(tmp_path)


def test_sft_shows_ours_and_on_request_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards 60 lines of ours from the 600 of the Trainer."""
    type_in(monkeypatch, "--help")
    with pytest.raises(SystemExit):
        check_sft()
    short = capsys.readouterr().out
    assert "--changed-token-weight" in short and "--adam_beta1 " not in short and "--help-all" in short
    type_in(monkeypatch, "--help-all")
    with pytest.raises(SystemExit):
        parse_sft(TrainingArguments)
    assert "--adam_beta1 " in capsys.readouterr().out


def test_a_wrong_option_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser()
    parser.add_argument("--n", type=int)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--n", "two"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: argument --n: invalid int value: 'two' (--help lists all options)\n"
    type_in(monkeypatch, "--data", "d", "--output", "o", "--shard-rows", "0")
    with pytest.raises(UserError, match="--shard-rows: expected at least 1"):
        parse_prepare()
