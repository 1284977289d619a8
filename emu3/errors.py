"""Errors that a person can mend, and how a command ends with one.

Every command of this project is `def main() -> None` run through `run_main`: a `UserError`, or a disk that is full or
may not be written to, becomes one line on standard error and exit code 2. Anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

DISK_TROUBLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR)


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, in which file or option, and what to do."""


def run_main(main: Callable[[], None]) -> None:
    """Run a command; what a person can mend ends it with `error: ...` and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_TROUBLE or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
