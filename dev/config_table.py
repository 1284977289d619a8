"""docs/config.md, the table of all keys of an RL run, from the dataclasses themselves: python -m dev.config_table

`tests/rl/test_config_table.py` notices a page that is old.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from emu3.settings import NUMBER
from rl.config import Config
from rl.config_file import DECISIVE, RENAMED

PAGE = Path(__file__).parents[1] / "docs" / "config.md"

HEAD = """\
# Keys of an RL run

Written by `python -m dev.config_table` from `rl/config.py` and `rl/reward/config.py`; `rl/README.md` has the published
keys beside these. A file sets them (`rollout: {{ group_size: 8 }}`), or the command line (`rollout.group_size=8`;
`null`, `true`, `[1, 2]` as in JSON). An unknown key is an error that names the nearest one; so is a number out of its
range, NaN and infinities included.

A run that is continued keeps {kept}; the others may change.

Older names that are still read, with a line that says so: {renamed}.
"""


def page() -> str:
    """The whole of docs/config.md."""
    kept = ", ".join(f"`{name}`" for name in DECISIVE)
    renamed = ", ".join(f"`{old}` (now `{new}`)" for old, new in RENAMED.items())
    return HEAD.format(kept=kept, renamed=renamed) + "".join(
        _section(cls, prefix) for cls, prefix in _sections(Config, "")
    )


def _sections(cls: type, prefix: str) -> Iterator[tuple[type, str]]:
    """A dataclass and those in it, with the path of their keys."""
    yield cls, prefix
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        inner = _without_none(hints[item.name])
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from _sections(inner, f"{prefix}{item.name}.")


def _section(cls: type, prefix: str) -> str:
    title = f"`{prefix.rstrip('.')}`" if prefix else "The run"
    text = " ".join((inspect.getdoc(cls) or "").split())
    hints = get_type_hints(cls)
    rows = [
        f"| `{prefix}{item.name}` | {_default(item)} | {_kind(hints[item.name], item)} | {item.metadata['help']} |"
        for item in dataclasses.fields(cls)
        if not dataclasses.is_dataclass(_without_none(hints[item.name]))
    ]
    table = "\n".join(["| key | default | values | meaning |", "|---|---|---|---|", *rows])
    return f"\n## {title}\n\n{text}\n\n{table}\n"


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is MISSING:
        return "(none)" if item.default_factory is MISSING else "see below"
    return f"`{json.dumps(item.default)}`"


def _kind(hint: Any, item: dataclasses.Field[Any]) -> str:
    inner = _without_none(hint)
    if get_origin(inner) is Literal:
        words = ", ".join(f"`{value}`" for value in get_args(inner))
    elif get_origin(inner) is tuple:
        words = f"a list of {_word(get_args(inner)[0])}"
    else:
        words = _word(inner)
    number = item.metadata.get(NUMBER)
    if number is not None:
        words = f"{words}, {number}{f' ({number.unit})' if number.unit else ''}"
    return words + (", or `null`" if inner is not hint else "")


def _word(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    return {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}[hint]


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
