"""How commands end."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu3.errors import UserError, run_main


def end_of(error: BaseException) -> int | str | None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    return ended.value.code


def test_what_a_person_can_mend_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk that runs full in the night is no bug of the program."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as not_a_folder:
        (tmp_path / "file" / "new").mkdir()
    assert end_of(UserError("no such column")) == 2
    assert end_of(not_a_folder.value) == 2
    assert end_of(OSError(errno.ENOSPC, "No space left on device", "run/model.safetensors")) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: no such column",
        f"error: {tmp_path / 'file' / 'new'}: Not a directory",
        "error: run/model.safetensors: No space left on device",
    ]


@pytest.mark.parametrize("name", ["two\nlines", "a\r\nb", "\x1b[31mred", "\u2028", "\x00"])
def test_a_name_with_a_line_break_is_still_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and paths come from files of others: they broke a message in two, or coloured the terminal."""
    assert end_of(UserError(f"{name} is not there")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.isprintable()


def test_an_interrupt_ends_quietly() -> None:
    assert end_of(KeyboardInterrupt()) == 130


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "No such file", "a"), OSError()])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    """A file that the program forgot to write must not look like the person's mistake."""

    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run_main(main)


@pytest.mark.parametrize("argument", ["--instruction=r\udce9d", "smile \ud83d"])
def test_an_argument_that_is_no_text_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    """Guards a run that ends when it writes its settings: a terminal may hand on any bytes."""
    monkeypatch.setattr("sys.argv", ["command", argument])
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: pytest.fail("it began"))
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "is not text that UTF-8 can hold" in line


@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("sys.exit(143)", 143)])
def test_a_rank_ends_without_taking_the_interpreter_apart(end: str, code: int) -> None:
    """Threads of torch abort it there once in a while: "terminate called without an active exception", and a launcher
    calls a finished run a failed one. Exit functions and what was printed are not lost."""
    program = f"""
import atexit, sys
from emu3.errors import run_main

class Late:
    def __del__(self):
        print("taken apart")

late = Late()
atexit.register(print, "exit function")

def main():
    print("done")
    {end}

run_main(main)
"""
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (code, "done\nexit function\n", "")
