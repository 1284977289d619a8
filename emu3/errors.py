"""Errors that a person can mend, and how a command ends with one.

Every command of this project is `def main() -> None` run through `run_main`: a `UserError` becomes one line
on standard error and exit code 2. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, in which file or option, and what to do."""


def run_main(main: Callable[[], None]) -> None:
    """Run a command; a `UserError` ends it with `error: ...` and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
