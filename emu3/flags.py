"""Options of commands: one spelling for each over all of them, help with defaults, and errors of one line.

The same thing has the same name everywhere: `--model`, `--vision`, `--data`, `--output`, `--judge-url`,
`--image-area`. Names that a command had before keep working and are not shown (`old`). Nothing large is imported here:
a command parses its arguments before it imports torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from emu3.errors import UserError
from emu3.settings import NUMBER

FLAG, ALIASES = "flag", "aliases"
"""Metadata of a dataclass's field: its option where that is not its name, and further ones."""
T = TypeVar("T")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Every option says that it is required, or what it is by default."""

    def add_argument(self, action: argparse.Action) -> None:
        text = action.help
        if text is not argparse.SUPPRESS and action.option_strings and "default" not in (text or ""):
            if action.required and "(required" not in (text or ""):
                text = f"{text or ''} (required)"
            elif not action.required and action.nargs != 0:
                shown = "none" if action.default in (None, [], (), argparse.SUPPRESS) else "%(default)s"
                text = f"{text or ''} (default: {shown})"
            action.help = text.strip() if text else text
        super().add_argument(action)


class CommandParser(argparse.ArgumentParser):
    """A parser of one command. old: names that options had before, to the present ones."""

    def __init__(self, *, old: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, **options})
        self._old = old or {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(renamed(sys.argv[1:] if args is None else args, self._old), namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists all options)\n")


class _Strict(CommandParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all options)")


def renamed(arguments: Sequence[str], old: Mapping[str, str]) -> list[str]:
    """Arguments with the present names of their options, with dashes or with underscores."""
    dashed = {name.replace("_", "-"): now for name, now in old.items()}
    found = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = dashed.get(name.replace("_", "-"), name) if name.startswith("--") else name
        found.append(f"{name}{equals}{value}")
    return found


def add_fields(parser: argparse.ArgumentParser, kind: type) -> None:
    """An option for each field of a dataclass, with dashes; the underscores of its name work as well."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        kinds = [one for one in typing.get_args(hints[item.name]) if one is not types.NoneType]
        hint = kinds[0] if kinds and type(None) in typing.get_args(hints[item.name]) else hints[item.name]
        options: dict[str, Any] = {"metavar": flag_of(item).lstrip("-").replace("-", "_").upper()}
        if typing.get_origin(hint) is typing.Literal:
            options = {"choices": typing.get_args(hint)}
        elif typing.get_origin(hint) is list:
            options |= {"nargs": "+", "type": typing.get_args(hint)[0]}
        else:
            options["type"] = hint
        if item.default is not dataclasses.MISSING:
            options["default"] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            options["default"] = item.default_factory()
        else:
            options["required"] = True
        text = item.metadata.get("help", "")
        if (bounds := item.metadata.get(NUMBER)) is not None:
            text += f"; {bounds.unit + ', ' if bounds.unit else ''}{bounds}"
        names = [flag_of(item), *item.metadata.get(ALIASES, ())]
        parser.add_argument(*names, dest=item.name, help=text.replace("%", "%%"), **options)


def parse_fields(kind: type[T], description: str, old: Mapping[str, str]) -> T:
    """An instance of a dataclass from the command line.

    Raises UserError for an unknown option, a missing or wrong value, and what the class itself refuses.
    """
    parser = _Strict(description=description, old={**underscored(kind), **old})
    add_fields(parser, kind)
    values, unknown = parser.parse_known_args()
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    return kind(**vars(values))


def underscored(kind: type) -> dict[str, str]:
    """Of the options of a dataclass, the field's own name to the option."""
    flags = {f"--{item.name}": flag_of(item) for item in dataclasses.fields(kind)}
    return flags | {name.replace("_", "-"): flag for name, flag in flags.items()}


def flag_of(item: dataclasses.Field) -> str:
    """The option of a field."""
    return str(item.metadata.get(FLAG, f"--{item.name.replace('_', '-')}"))
