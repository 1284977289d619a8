"""Command-line flags from dataclasses, with one line for what is wrong with them.

transformers' parser makes the flags; its own usage text for a wrong one is two hundred lines long.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers.hf_argparser import DataClassType, HfArgumentParser

from emu3.errors import UserError


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all options)")


def parse_flags(classes: Sequence[type], description: str | None) -> list[Any]:
    """One instance of each of the dataclasses `classes`, filled from the command line.

    description: of the command; its first line is shown by --help. Raises UserError for an unknown flag, a missing
    or wrong value, and whatever a class itself refuses.
    """
    parser = _Parser([DataClassType(kind) for kind in classes], description=(description or "").splitlines()[0])
    try:
        *instances, unknown = parser.parse_args_into_dataclasses(
            sys.argv[1:], return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:  # what TrainingArguments refuses, or lacks a package for
        raise UserError(" ".join(str(error).split())) from error
    if unknown:
        raise UserError(f"unknown option {unknown[0]} (--help lists all options)")
    return instances
