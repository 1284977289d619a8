"""Somebody's own reward, loss, metric, editor, benchmark, reader or wording, by the name that a person types.

    package.module:name       of what Python can import
    path/to/file.py:name      of a file, which stands alone: what lies beside it cannot be imported

Such a name runs code, so it is read from the command line and from config files alone, never from a dataset, a
checkpoint or a run's record. What was used is recorded with the SHA-256 of its source: of the one file that is named,
not of what that imports. docs/extensions.md has a template for each place that takes one.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from emu3.errors import UserError, one_line
from emu3.files import sha256_of

_NAME = re.compile(r"(?P<place>.+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")


def is_extension(text: object) -> bool:
    """Whether a text is spelled `module:name` or `file.py:name`."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def load_extension(text: str, role: str, takes: str | None = None, kind: type | None = None) -> Any:
    """What `text` names. role: what it is to be, for messages. takes: how it will be called, such as "(judge)"; None:
    not at all. kind: class that it has to be an instance of.

    Raises UserError if there is no such file, module or name, if importing it fails, and if it is something else.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise UserError(f"{role} {text!r}: expected package.module:name or path/to/file.py:name")
    try:
        module, _ = _load(found["place"])
    except UserError as error:
        raise UserError(f"{role} {text}: {error}") from error
    if not hasattr(module, found["name"]):
        near = difflib.get_close_matches(found["name"], [name for name in vars(module) if name[:1] != "_"], 1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"{role} {text}: {found['place']} has no {found['name']}{nearest}")
    value = getattr(module, found["name"])
    fault = None if takes is None else _cannot_be_called(value, takes)
    if kind is not None and not isinstance(value, kind):
        fault = f"expected a {kind.__module__}.{kind.__name__}, got a {type(value).__name__}"
    if fault:
        raise UserError(f"{role} {text}: {fault}")
    return value


def make_extension(text: str, role: str, takes: str, *arguments: Any, protocol: type) -> Any:
    """What the class or function `text` makes of `arguments`, which has the members of `protocol`, each to be called as
    there. Raises UserError as `load_extension` does."""
    value = load_extension(text, role, takes)(*arguments)
    for owner in protocol.__mro__:
        for name in inspect.get_annotations(owner):
            if not hasattr(value, name):
                raise UserError(f"{role} {text}: what {takes} gives has no {name}: see {_shown(protocol)}")
        for name, member in vars(owner).items():
            if not isinstance(member, FunctionType | property) or name in ("__init__", "__subclasshook__"):
                continue
            fault = None if hasattr(value, name) else "it is missing"
            if isinstance(member, FunctionType) and not fault:
                _, *parameters = inspect.signature(member).parameters
                method = getattr(value, name)
                fault = _cannot_be_called(method, f"({', '.join(parameters)})")
                if inspect.iscoroutinefunction(member) and not inspect.iscoroutinefunction(method):
                    fault = fault or "it has to be an async function"
            if fault:
                raise UserError(f"{role} {text}: its {name}: {fault}; see {_shown(protocol)}")
    return value


def source_digests(*texts: str | None) -> dict[str, str]:
    """SHA-256 of the source of each extension among `texts`, by the name that was typed; nothing of other texts."""
    return {text: _load(text.rpartition(":")[0])[1] for text in texts if text is not None and is_extension(text)}


def _cannot_be_called(value: Any, takes: str) -> str | None:
    """Why `value` cannot be called with the arguments `takes`, by their places."""
    if not callable(value):
        return f"expected to call it as {takes}, got a {type(value).__name__}"
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # written in C
        return None
    try:
        signature.bind(*filter(str.strip, takes.strip("()").split(",")))
    except TypeError as error:
        return f"expected to call it as {takes}, it takes {signature} ({error})"
    return None


def _shown(protocol: type) -> str:
    return f"{protocol.__module__}.{protocol.__name__}"


@lru_cache
def _load(place: str) -> tuple[ModuleType, str]:
    """The module, imported once, and the SHA-256 of its source."""
    path = Path(place).expanduser()
    if place.endswith(".py") and not path.is_file():
        raise UserError(f"{place} does not exist")
    try:
        module = _from_file(path) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever a person's module does
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            raise UserError(f"there is no module {place}: install it, or name a file, path/to/file.py:name") from None
        raise UserError(f"{place} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    if module.__file__ is None:
        raise UserError(f"{place} is a folder without __init__.py: name a module in it")
    return module, sha256_of(Path(module.__file__))


def _from_file(path: Path) -> ModuleType:
    name = f"extension_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module
