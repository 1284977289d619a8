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


def test_a_disk_that_breaks_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NFS that lost its server, a limit on files: each was a traceback behind hours of work."""
    (tmp_path / "taken").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    names = ("taken", "gone", "loop", "x" * 300)
    raised: list[OSError] = []
    for name in names:
        with pytest.raises(OSError) as refused:
            (tmp_path / name).mkdir(exist_ok=True)
        raised.append(refused.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as refused:
        (tmp_path / "taken").replace(tmp_path / "folder")
    raised.append(refused.value)
    raised += [OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EFBIG)]
    assert [end_of(error) for error in raised] == [2] * 9
    lines = capsys.readouterr().err.splitlines()
    for line, name in zip(lines, names[:3], strict=False):
        assert (
            line == f"error: {tmp_path / name} is there already, and is no folder: choose another place, or remove it"
        )
    assert lines[3].endswith("File name too long: choose a shorter one")
    assert lines[4] == f"error: {tmp_path / 'folder'}: Is a directory: remove it, or choose another place"
    assert lines[5:7] == [f"error: the disk of the output: {os.strerror(n)}" for n in (errno.EIO, errno.ESTALE)]
    assert lines[7].endswith("(`ulimit -n`)") and lines[8].endswith("(`ulimit -f`, or the filesystem's)")


PRINTS = """
import contextlib, os, sys
from emu3.errors import run_main
def main():
    for _ in range(3):
        print("\u2192 a line", flush=True)
    print("\u2192", file=sys.stderr)
    opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.write(opened, b"whole")
    with contextlib.suppress(OSError):
        os.write(2, b"noise of a library")
run_main(main)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("streams", "said"),
    [
        ("| true", ["\u2192"]),
        ("> /dev/full", ["warning: standard output: [Errno 28] No space left on device; nothing more is shown there"]),
        ("> /dev/full 2> /dev/full", []),
        ("2> /dev/full | true", []),
        ("2>&-", []),
        (">&- 2>&- <&-", []),
    ],
)
def test_work_goes_on_where_nobody_reads_what_is_printed(
    tmp_path: Path, streams: str, said: list[str], unbuffered: str
) -> None:
    """A training ended with a traceback because `tee` had, or the log's disk was full. Where standard error was closed,
    the next file got its number, and a library's messages among its bytes."""
    command = f'{sys.executable} -c "$PROGRAM" {tmp_path / "file"} {streams}; echo ${{PIPESTATUS[0]}} >&3'
    ended = subprocess.run(
        ["bash", "-c", f"exec 3>{tmp_path / 'code'}; {command}"],
        env={**os.environ, "PROGRAM": PRINTS, "PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "utf-8"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (tmp_path / "code").read_text() == "0\n"
    assert (tmp_path / "file").read_bytes() == b"whole"
    lines = ended.stderr.replace("noise of a library", "").splitlines()
    assert lines[: len(said)] == said and "Traceback" not in ended.stderr and "BrokenPipe" not in ended.stderr


def test_a_character_that_a_terminal_lacks_ends_nothing(tmp_path: Path) -> None:
    """An id with an accent ended an evaluation whose job had no locale."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", PRINTS, tmp_path / "file"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.splitlines() == ["\\u2192 a line"] * 3


@pytest.mark.parametrize("name", ["two\nlines", "a\r\nb", "\x1b[31mred", "\u2028", "\x00"])
def test_a_name_with_a_line_break_is_still_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and paths come from files of others: they broke a message in two, or coloured the terminal."""
    assert end_of(UserError(f"{name} is not there")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.isprintable()


def test_a_place_that_holds_no_folders_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Linux's /proc says of a new folder that it is not found."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: Path("/proc/run/data").mkdir(parents=True))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: /proc/run: no folder can be made there: choose another place\n"


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
