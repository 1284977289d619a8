"""Numbers of a config with their range, unit and meaning beside their default, for checks and for the table of keys.

A field made by `setting` is an ordinary field of a dataclass. `check_numbers` refuses what is out of range, NaN and
infinities; every number has a range (tests see to it). Commands show the same texts in --help, docs/config.md has them
all.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from emu3.errors import UserError

NUMBER = "number"

Product = Literal["plain", "onednn", "bf16"]
PRODUCT = (
    "of float32 numbers in linear layers on a CPU (`emu3.mllm.product`): `onednn` is as exact as `plain` and faster on "
    "processors other than Intel's, `bf16` rounds the factors and is faster where a processor multiplies bfloat16; a "
    "start says what would be faster"
)
"""A setting that SFT and RL share, and its meaning."""


@dataclass(frozen=True)
class Number:
    """A closed range, open at the ends that `above` and `below` give; unit: in a word or two, empty for a count."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Such as `at least 1`, `more than 0 and at most 1`."""
        ends = {"at least": self.least, "more than": self.above, "at most": self.most, "less than": self.below}
        return " and ".join(f"{word} {_shown(value)}" for word, value in ends.items() if value is not None)


def _shown(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def setting(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    unit: str = "",
    aliases: tuple[str, ...] = (),
) -> Any:
    """A field of a dataclass; numbers have a range. aliases: further flags, where a command is made of the class."""
    metadata: dict[str, Any] = {"help": help}
    bounds = Number(least, most, above, below, unit)
    if str(bounds):
        metadata[NUMBER] = bounds
    if aliases:
        metadata["aliases"] = list(aliases)
    if callable(default):  # a class or a function that makes the default
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def number_in(
    kind: type[int] | type[float], *, least: float | None = None, most: float | None = None, above: float | None = None
) -> Callable[[str], Any]:
    """The `type` of a flag of argparse that is a number in this range, as `Number` has it."""
    bounds = Number(least, most, above)

    def read(text: str) -> Any:
        value = kind(text)
        if value not in bounds:
            raise argparse.ArgumentTypeError(f"expected {bounds}, got {text}")
        return value

    read.__name__ = kind.__name__  # argparse calls what is no number by it
    return read


COUNT = number_in(int, least=1, most=2**31)
SEED = number_in(int, least=0, most=2**63 - 1)


def numbers(config: Any, name: str = "") -> Iterator[tuple[str, Number, Any]]:
    """The numbers of a config and of the dataclasses in it: dotted name, range, value. None, where it is allowed, is no
    number."""
    for item in dataclasses.fields(config):
        value, path = getattr(config, item.name), name + item.name
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{path}.")
        elif NUMBER in item.metadata:
            values = value if isinstance(value, (tuple, list)) else (value,)
            yield from ((path, item.metadata[NUMBER], number) for number in values if number is not None)


def check_numbers(config: Any, shown: Callable[[str], str]) -> None:
    """Raise UserError for the first number out of range. shown: a field's dotted name as the user wrote it."""
    for name, bounds, value in numbers(config):
        if value not in bounds:
            raise UserError(f"{shown(name)}: expected {bounds}, got {value}")
