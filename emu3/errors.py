"""Errors that a person can mend, and how a command ends with one.

Every command of this project is `def main() -> None` run through `run_main`: a `UserError`, or a disk that is full or
may not be written to, becomes one line on standard error and exit code 2. Anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

DISK_TROUBLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR)


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, in which file or option, and what to do."""


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


_OTHER_RANKS_WAIT = 5.0  # seconds; the launcher ends them sooner when rank 0 has failed as well


def run_main(main: Callable[[], None]) -> None:
    """Run a command; what a person can mend ends it with `error: ...` and exit code 2.

    Of several ranks with the same trouble only the first says so, and all of them end with their launcher.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_parent()
    try:
        for argument in sys.argv[1:]:
            if fault := utf8_fault(argument):
                raise UserError(f"the argument {ascii(argument)[:200]} {fault}")
        main()
    except UserError as error:
        _end(str(error))
    except OSError as error:
        if error.errno not in DISK_TROUBLE or error.filename is None:
            raise
        _end(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone: a launcher that is killed outright cannot
    end its ranks, which would go on writing into a run's folder beside those of the next start. Linux alone can."""
    set_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)


def _end(message: str) -> NoReturn:
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(_OTHER_RANKS_WAIT)
    print(f"error{f' (rank {rank})' if rank else ''}: {message}", file=sys.stderr)
    sys.exit(2)
