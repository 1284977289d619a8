"""What the commands of this package share: flags from dataclasses, and the work of one of several workers.

transformers' parser makes the flags; its own usage text for a wrong one is two hundred lines long, here it is one line.

A dataset of codes is cut into shards of `shard_rows` input rows; shard k belongs to worker k modulo the number of
workers, which are plain processes that know nothing of each other (torchrun and `emu3.launch` set RANK and
WORLD_SIZE). The worker that finds every shard there writes the manifest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm
from transformers.hf_argparser import DataClassType, HfArgumentParser

from emu3.errors import UserError
from emu3.settings import Number, check_numbers, setting
from emu3.tokenizer.images import MAX_AREA
from emu3.train_image_editing.shard_writer import ShardWriter


class _Parser(HfArgumentParser):
    def add_argument(self, *names: Any, number: Number | None = None, **options: Any) -> argparse.Action:
        """number: a field's range, which `check_numbers` reads."""
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all options)")


Renamed = Mapping[str, tuple[str, Callable[[str], str]]]
"""By a flag's older name, without its dashes: the present flag, and what becomes of a value."""


def parse_flags(classes: Sequence[type], description: str | None, renamed: Renamed | None = None) -> list[Any]:
    """One instance of each of the dataclasses `classes`, filled from the command line.

    description: of the command; its first line is shown by --help. renamed: flags under names of before, which are
    taken with a line on standard error. Raises UserError for an unknown flag, a missing or wrong value, and whatever a
    class itself refuses.
    """
    parser = _Parser([DataClassType(kind) for kind in classes], description=(description or "").splitlines()[0])
    try:
        *instances, unknown = parser.parse_args_into_dataclasses(
            present_flags(sys.argv[1:], renamed or {}), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:  # what TrainingArguments refuses, or lacks a package for
        raise UserError(" ".join(str(error).split())) from error
    if unknown:
        raise UserError(f"unknown option {unknown[0]} (--help lists all options)")
    return instances


def present_flags(arguments: Sequence[str], renamed: Renamed) -> list[str]:
    """`arguments` under the present names, with one line on standard error if there were others."""
    found: list[str] = []
    said: dict[str, str] = {}
    change: Callable[[str], str] | None = None  # of the value that comes next
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in renamed:
            now, becomes = renamed[name]
            said[flag] = now
            argument, change = (f"{now}={becomes(value)}", None) if equals else (now, becomes)
        elif change is not None:
            argument, change = change(argument), None
        found.append(argument)
    if said and os.environ.get("RANK", "0") == "0":
        print(f"note: {', '.join(f'{flag} is {now} here' for flag, now in said.items())}", file=sys.stderr)
    return found


@dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """The flags of every command that writes shards; these names with dashes. Raises UserError for wrong values."""

    output_path: str = field(metadata={"help": "folder for shards and manifest"})
    image_area: int = setting("pixels of a resized image", 65536, least=1, most=MAX_AREA)
    shard_rows: int = setting(
        "input rows of one shard, the most that a worker that is killed loses", 4096, least=1, most=2**31
    )
    rank: int = setting("this worker", lambda: int(os.environ.get("RANK", "0")), least=0)
    world_size: int = setting("number of workers", lambda: int(os.environ.get("WORLD_SIZE", "1")), least=1)

    def __post_init__(self) -> None:
        check_numbers(self, lambda name: f"--{name.replace('_', '-')}")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"--rank {self.rank} is not below --world-size {self.world_size}")


class Worker:
    """One worker's share of a dataset. parts: by shard, the rows that this worker has still to do.

    rows: what stands for the input rows, in order. settings: what decides the content of the shards.
    vision: the vision tokenizer, a folder or Hub id, if it is known.
    Raises UserError if the folder holds shards of other settings.
    """

    def __init__(
        self,
        arguments: WorkerArguments,
        settings: Mapping[str, Any],
        rows: np.ndarray | Sequence[str],
        vision: str | None,
    ) -> None:
        size, shards = arguments.shard_rows, -(-len(rows) // arguments.shard_rows)
        self._arguments = arguments
        self._writer = ShardWriter(Path(arguments.output_path), settings, shards, vision)
        self._share = range(arguments.rank, shards, arguments.world_size)
        missing = [index for index in self._share if not self._writer.finished(index)]
        self.parts: dict[int, Any] = {index: rows[index * size : (index + 1) * size] for index in missing}
        self.rows = sum(map(len, self.parts.values()))
        self.write = self._writer.write

    def progress(self, total: int, unit: str) -> tqdm:
        """A progress bar, where there is work."""
        return tqdm(
            total=total,
            unit=unit,
            desc=f"worker {self._arguments.rank}",
            position=int(os.environ.get("LOCAL_RANK", "0")),
            mininterval=0.5 if sys.stderr.isatty() else 30,
            disable=not self.parts,
        )

    def finish(self, worked: str) -> tuple[dict[str, Any] | None, str]:
        """The manifest once all shards are there, else None; and a line about the work. worked: what it took.

        Raises UserError if not one row could be used.
        """
        manifest = self._writer.finish()
        written, there = len(self.parts), len(self._share) - len(self.parts)
        done = f"worker {self._arguments.rank}: {worked}{written} shards written, {there} were there"
        if manifest is None:
            return None, f"{done}; other workers are not finished, no manifest yet"
        return manifest, f"{done}; {self._arguments.output_path} is complete: {manifest['rows']} rows"
