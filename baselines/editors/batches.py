"""Which samples are edited together, by which process, from which seed.

All of it follows from the rows and the settings, not from how many processes there are or what is done already: an
interrupted run and a run on four GPUs give the pictures of an uninterrupted run on one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from baselines.benchmarks.samples import Samples
from emu3.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Rows that are edited together. start: how many rows stand before it, in the order of the batches."""

    start: int
    rows: tuple[int, ...]

    def seed(self, run_seed: int) -> int:
        """The batch's own seed, 32 bits."""
        return int(np.random.SeedSequence((run_seed, self.start)).generate_state(1)[0])


def make_batches(samples: Samples, rows: Sequence[int], size: int, equal_sizes: bool) -> list[Batch]:
    """`rows` in order, `size` at a time; with equal_sizes, those with sources of one size together, and no others."""
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for row in rows:
        groups.setdefault(samples.size(row) if equal_sizes else None, []).append(row)
    batches: list[Batch] = []
    start = 0
    for group in groups.values():
        for first in range(0, len(group), size):
            batches.append(Batch(start, tuple(group[first : first + size])))
            start += len(batches[-1].rows)
    return batches


@dataclass(frozen=True)
class Share:
    """The batches that one of `count` processes does: number `index`, `index + count`, ..."""

    index: int
    count: int

    def of(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        return batches[self.index :: self.count]


def share_of(text: str | None) -> Share:
    """`I/N` as a share, I from 0; without a text what torchrun says by RANK and WORLD_SIZE, else everything."""
    if text is None:
        return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"a shard is I/N with I from 0 to N-1, such as 0/4, not {text!r}")
    return Share(int(match[1]), int(match[2]))
