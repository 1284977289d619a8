"""The console command: it answers at once, and each subcommand is the module's own command."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from shapes.command_line import COMMANDS

HEAVY = ("torch", "transformers", "datasets", "diffusers", "matplotlib", "accelerate", "deepspeed", "gradio")


def earl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shapes.command_line", *arguments], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--version"], ["edti"], ["edit", "--ranks", "2"], ["rl", "--ranks=0"]),
        *([name, "--help"] for name in COMMANDS),
        *([name, "--image-aera=5"] for name in COMMANDS),
    ],
    ids=" ".join,
)
def test_it_answers_without_the_heavy_libraries(arguments: list[str]) -> None:
    """`--help` took 4 to 7 seconds of CPU, nearly all of it importing torch and transformers; and so did a wrong
    option. sft alone knows its wrong ones when it has imported the Trainer, whose options it takes."""
    code = f"""
import json, sys
sys.argv = ["earl", *{arguments!r}]
from emu3.errors import run_main
from shapes.command_line import main
try:
    run_main(main)
finally:
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert json.loads(found.stdout.splitlines()[-1]) == []


def test_an_unknown_command_is_one_line() -> None:
    found = earl("tokenise")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: earl has no command 'tokenise', the nearest is 'tokenize': earl --help\n"


def test_nothing_at_all_is_the_usage_and_code_2() -> None:
    found = earl()
    assert found.returncode == 2 and found.stdout == "" and found.stderr.startswith("usage: earl COMMAND")


def test_every_command_is_there() -> None:
    """A module that moved would be noticed by the person who types its command."""
    for name, command in COMMANDS.items():
        assert importlib.util.find_spec(command.module) is not None, name
        assert callable(importlib.import_module(command.module).main), name


def test_a_command_gets_its_arguments_and_its_name() -> None:
    found = earl("agreement", "--help")
    assert found.returncode == 0 and found.stdout.startswith("usage: earl agreement ")
    found = earl("agreement", "--scores", "nowhere.parquet", "--output", "nowhere")
    assert found.returncode == 2 and "error: " in found.stderr and "Traceback" not in found.stderr
