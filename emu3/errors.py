"""Errors that a person can mend, and how a command ends with one.

Every command of this project is `def main() -> None` run through `run_main`: a `UserError`, or a disk that is full,
broken or may not be written to, becomes one line on standard error and exit code 2. Anything else is a bug and keeps
its traceback. What a command prints only shows its work: where nobody can read it any more, the work goes on.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import io
import logging
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from traceback import extract_tb
from typing import Any, NoReturn

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (*DISK_FULL, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_ADVICE = {
    errno.EFBIG: ": a limit on the size of files (`ulimit -f`, or the filesystem's)",
    errno.EMFILE: ": raise the limit on open files (`ulimit -n`)",
    errno.EISDIR: ": remove it, or choose another place",
    errno.ENAMETOOLONG: ": choose a shorter one",
}


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, in which file or option, and what to do.

    Line breaks and control characters, which come with names and values out of files, become spaces."""

    def __init__(self, message: str) -> None:
        super().__init__(_CONTROLS.sub(" ", message))


class DivergedError(UserError, FloatingPointError):
    """A model whose probabilities are not finite. The message says so."""

    def __init__(self) -> None:
        super().__init__("the model's probabilities are not finite: its weights have diverged")


def one_line(error: Exception) -> str:
    """The message of a library's error, for a message of ours."""
    return " ".join(str(error).split())[:300]


def utf8_fault(text: str) -> str | None:
    """What is wrong with a text that UTF-8 cannot hold, such as half an emoji; None for all others."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not text that UTF-8 can hold: {text[error.start]!a} at {error.start} is half a character"
    return None


PARENT = "EARL_PARENT"
"""Variable with the process that a command ends with: set by a launcher for its ranks, by a pipeline for its stages."""
_HOME = re.compile(r"^((?:--?[\w-]+=|[\w.]+=)?)~/")  # which a shell expands only at the begin of a word
_OTHER_RANKS_WAIT = 5.0  # seconds; the launcher ends them sooner when rank 0 has failed as well


def run_main(main: Callable[[], None]) -> None:
    """Run a command; what a person can mend ends it with `error: ...` and exit code 2.

    Of several ranks with the same trouble only the first says so, and all of them end with their launcher.
    """
    _spare_output()
    level = os.environ.get("EARL_LOG_LEVEL", "WARNING").upper()
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=level if level in logging.getLevelNamesMapping() else logging.WARNING,
    )
    parent = os.environ.pop(PARENT, "")  # whoever set it meant this process, not what it starts
    is_rank = "TORCHELASTIC_RUN_ID" in os.environ
    if parent.isdecimal() or is_rank:
        end_with_parent(int(parent) if parent.isdecimal() else os.getppid())
    sys.argv[1:] = [_HOME.sub(rf"\g<1>{Path.home()}/", text) for text in sys.argv[1:]]
    try:
        for argument in sys.argv[1:]:
            if fault := utf8_fault(argument):
                raise UserError(f"the argument {ascii(argument)[:200]} {fault}")
        main()
        if is_rank:
            leave(0)
    except SystemExit as end:
        if is_rank and isinstance(end.code, int):
            leave(end.code)
        raise
    except UserError as error:
        _end(str(error))
    except OSError as error:
        if error.errno == errno.EEXIST and error.filename is not None:
            _end(f"{error.filename} is there already, and is no folder: choose another place, or remove it")
        if error.errno == errno.ENOENT and extract_tb(error.__traceback__)[-1].name == "mkdir":  # parents are made
            _end(f"{error.filename}: no folder can be made there: choose another place")
        if error.errno not in _BROKEN and (error.errno not in _PLACE or error.filename is None):
            raise
        where = error.filename2 or error.filename or "the disk of the output"  # the second: what a file should become
        _end(f"{where}: {os.strerror(error.errno)}{_ADVICE.get(error.errno, '')}")
    except Exception as error:
        # safetensors says what the system said, in words; it is not imported for that.
        if type(error).__name__ != "SafetensorError" or not any(f"os error {code})" in str(error) for code in _BROKEN):
            raise
        _end(f"the disk of the output: {one_line(error)}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


class _Spared(io.FileIO):
    """A standard stream that never raises: after the first trouble (a full disk, a pipe that nobody reads, a terminal
    that is gone) what is written to it is lost, which the other stream says once."""

    broken = False

    def write(self, data: Any) -> int:
        try:
            while not self.broken and (written := super().write(data)) is None:
                select.select([], [self.fileno()], [])  # a pipe that somebody has made non-blocking
        except (OSError, ValueError) as error:
            self.broken = True
            if self.fileno() == 1 and getattr(error, "errno", None) != errno.EPIPE:  # `| head` has read enough
                print(f"warning: standard output: {error}; nothing more is shown there", file=sys.stderr)
        return memoryview(data).nbytes if self.broken else written


def _spare_output() -> None:
    """Let no trouble with the standard streams end the command, nor a character that they cannot show; and let none
    that is closed lend its number to a file that is opened next, into which libraries would then write messages."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # closed, or a notebook's or a test's own
        stream.flush()
        raw = _Spared(stream.fileno(), "wb", closefd=False)
        buffer = raw if stream.write_through else io.BufferedWriter(raw)
        text = io.TextIOWrapper(
            buffer,  # type: ignore[arg-type]
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, text)


def leave(code: int) -> NoReturn:
    """End a process whose work is done, without taking the interpreter apart: threads of torch that still hold Python
    objects, such as those of a process group, then abort it once in a while (pytorch issue 190489), and a launcher
    would call a finished run a failed one."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""By which terminals and schedulers ask for an end."""


def signals_to_end() -> list[signal.Signals]:
    """`SIGNALS`, but those that this process was started to ignore: by nohup, or in the background of a script."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when `parent`, which started it, is gone: one that is killed outright cannot end
    its children, which would go on writing into a run's folder beside those of the next start. Linux alone can."""
    set_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent and not Path(f"/proc/{parent}").exists():  # it was gone before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)


def _end(message: str) -> NoReturn:
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(_OTHER_RANKS_WAIT)
    print(f"error{f' (rank {rank})' if rank else ''}: {message}", file=sys.stderr)
    sys.exit(2)
