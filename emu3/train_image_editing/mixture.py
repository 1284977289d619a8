"""How much of each data set a run sees, and in which order.

With coefficients, set i contributes `coefficients[i]` times its rows: whole copies, and for the fraction a random
subset without repetition. Without, every smaller set is repeated up to the size of the largest, as the paper did
with its complex sets. The order is a function of (seed, pass over the data), so that a run continues from a
position alone; no iterator state is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from emu3.errors import UserError


class Mixture:
    """`len(mixture)` pairs (data set, row); `mixture[i]` is one of them, in the order of the sets.

    sizes: rows of each set. coefficients: one non-negative factor per set, or None to upsample to the largest.
    Raises UserError if they do not fit or nothing is left.
    """

    def __init__(self, sizes: Sequence[int], coefficients: Sequence[float] | None = None, seed: int = 0) -> None:
        counts = _counts(sizes, coefficients)
        self.seed = seed
        self.pairs = np.concatenate(
            [
                np.stack([np.full(count, index), _repeat(size, count, np.random.default_rng((seed, index)))], axis=1)
                for index, (size, count) in enumerate(zip(sizes, counts, strict=True))
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, int]:
        data_set, row = self.pairs[index]
        return int(data_set), int(row)

    def stream(self, position: int = 0) -> Iterator[tuple[int, int]]:
        """Endless pairs from `position` on: each pass over the mixture is shuffled anew."""
        while True:
            epoch, start = divmod(position, len(self))
            order = np.random.default_rng((self.seed, len(self), epoch)).permutation(len(self))
            for index in order[start:]:
                yield self[int(index)]
            position = (epoch + 1) * len(self)


def _counts(sizes: Sequence[int], coefficients: Sequence[float] | None) -> list[int]:
    if not sizes or min(sizes) < 1:
        raise UserError(f"every data set of a mixture needs rows, got sizes {list(sizes)}")
    if coefficients is None:
        return [max(sizes)] * len(sizes)
    if len(coefficients) != len(sizes):
        raise UserError(f"{len(coefficients)} coefficients for {len(sizes)} data sets: give one for each")
    if not all(math.isfinite(value) and value >= 0 for value in coefficients):
        raise UserError(f"coefficients {list(coefficients)}: each must be a number that is not negative")
    counts = [round(value * size) for value, size in zip(coefficients, sizes, strict=True)]
    if not sum(counts):
        raise UserError(f"coefficients {list(coefficients)} leave no row of data sets with {list(sizes)} rows")
    return counts


def _repeat(size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    copies, rest = divmod(count, size)
    subset = np.sort(generator.permutation(size)[:rest])
    return np.concatenate([np.tile(np.arange(size), copies), subset])
