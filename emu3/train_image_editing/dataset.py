"""Tokenized rows as training sequences, in the proportions of a mixture, and batches of them.

Every row is turned into token ids once, before training, and lies in flat arrays: a step then only slices and pads.
That costs 5 bytes a token (11 kB for a pair of 32x32 grids) on each rank and saves the text tokenizer and the grid
code from running in every epoch.

A batch holds what the model reads and what it has to say, already shifted: `targets[b, j]` follows the j-th of the
last K inputs. Only those K positions need logits, about half of a sequence. There is no attention mask: padding
stands on the right, so causal attention never lets a position that counts see it.

With coefficients, set i of a mixture contributes `coefficients[i]` times its rows: whole copies, and for the fraction a
random subset without repetition, another one in each pass until all rows had their turn. Without, every smaller set is
repeated up to the size of the largest, as the paper did with its complex sets. Rows and order are functions of (seed,
pass over the data), so that a run continues from a position alone; no iterator state is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from emu3.errors import UserError
from emu3.mllm.sequence import edit_prompt, edit_target, reasoning_text
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing.shards import EditRow, Rows

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One sequence. tokens: int32 (T,). start: index of the first target token. changed: bool (T,), the visual codes
    of the target that differ from the source's code in the same cell."""

    tokens: np.ndarray
    start: int
    changed: np.ndarray


class EncodedRows:
    """The rows of one dataset that can be trained on, as token ids.

    cot_keys: train to reason first, with these texts. missing: what becomes of rows that have none of them: "plain"
    edits, counted in `plain`, "drop", or "refuse", an error. Rows without a target and rows of more than
    `max_positions` tokens are dropped. `dropped` counts them by reason.
    Raises UserError for codes that the tokenizer does not have, and if nothing is left.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: TextTokenizer,
        cot_keys: Sequence[str],
        max_positions: int,
        missing: Literal["plain", "drop", "refuse"] = "plain",
    ) -> None:
        self.plain = 0
        too_long = f"longer than {max_positions} tokens"
        self.dropped = {"without a target": 0, "without reasoning": 0, too_long: 0}
        examples = []
        for row in tqdm(rows, desc=f"encoding {rows.folder.name}", unit="row", disable=None):
            if row.edited is None:
                self.dropped["without a target"] += 1
                continue
            unreasoned = bool(cot_keys) and reasoning_text(row.cot, cot_keys) is None
            if unreasoned and missing == "refuse":
                raise UserError(
                    f"{rows.folder}, row {row.id}: no reasoning under {', '.join(cot_keys)}; --reasoning_missing plain "
                    "trains such rows as plain edits, drop leaves them out"
                )
            if unreasoned and missing == "drop":
                self.dropped["without reasoning"] += 1
                continue
            example = _encode(row, row.edited, tokenizer, cot_keys, rows)
            if len(example.tokens) <= max_positions:
                examples.append(example)
                self.plain += unreasoned
            else:
                self.dropped[too_long] += 1
        if not examples:
            why = ", ".join(f"{count} are {reason}" for reason, count in self.dropped.items() if count)
            more = "; --max_position_embeddings sets that length" if self.dropped[too_long] else ""
            raise UserError(f"{rows.folder} has no row to train on: of {len(rows)}, {why}{more}")
        self._tokens = np.concatenate([example.tokens for example in examples])
        self._changed = np.concatenate([example.changed for example in examples])
        self._starts = np.array([example.start for example in examples])
        self._ends = np.cumsum([len(example.tokens) for example in examples])

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def longest(self) -> tuple[int, int]:
        """Tokens of the longest row, and targets of the row that has most."""
        lengths = np.diff(self._ends, prepend=0)
        return int(lengths.max()), int((lengths - self._starts).max())

    def __getitem__(self, index: int) -> Example:
        span = slice(self._ends[index - 1] if index else 0, self._ends[index])
        return Example(self._tokens[span], int(self._starts[index]), self._changed[span])


def _encode(
    row: EditRow,
    edited: np.ndarray,
    tokenizer: TextTokenizer,
    cot_keys: Sequence[str],
    rows: Rows,
) -> Example:
    try:
        prompt = edit_prompt(tokenizer, row.source, row.instruction)
        target = edit_target(tokenizer, edited, reasoning_text(row.cot, cot_keys))
    except ValueError as error:
        raise UserError(f"{rows.folder}, row {row.id}: {error} (made with another vision tokenizer?)") from error
    tokens = np.array(prompt + target, dtype=np.int32)
    changed = np.zeros(len(tokens), dtype=bool)
    codes = tokens >= tokenizer.layout.first_code
    codes[: len(prompt)] = False
    # Grids of two shapes have no cells in common: every code is a change.
    changed[codes] = (edited != row.source).ravel() if edited.shape == row.source.shape else True
    return Example(tokens, len(prompt), changed)


class MixedRows(Dataset[Example]):
    """Several encoded datasets in the proportions of a mixture, of the pass that `set_epoch` says."""

    def __init__(self, parts: Sequence[EncodedRows], mixture: Mixture) -> None:
        self.parts = parts
        self.mixture = mixture
        # Shared memory: the workers of a data loader may live longer than a pass.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """epoch: passes over the data before this one."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> Example:
        part, row = self.mixture.at(index, int(self._epoch))
        return self.parts[part][row]


@dataclass(frozen=True)
class Collator:
    """Examples -> a batch of tensors on the CPU.

    pad: token id for padding. changed_token_weight: loss weight of the target codes that differ from the source.
    prompt_token_weight: loss weight of the prompt's tokens, 0 for a loss on the target only.
    input_ids: int64 (B, T). targets: int64 (B, K), what follows the last K inputs, -100 where nothing is to be
    learned. weights: float32 (B, K), 0 where targets are -100. lengths: int64 (B,), inputs that are not padding.
    """

    pad: int
    changed_token_weight: float = 1.0
    prompt_token_weight: float = 0.0

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        longest = max(len(example.tokens) for example in examples)
        starts = [1 if self.prompt_token_weight else example.start for example in examples]
        first = min(starts)
        tokens = np.full((len(examples), longest), self.pad, dtype=np.int64)
        targets = np.full((len(examples), longest), IGNORED, dtype=np.int64)
        weights = np.zeros((len(examples), longest), dtype=np.float32)
        for row, (example, start) in enumerate(zip(examples, starts, strict=True)):
            learned = slice(start, len(example.tokens))
            tokens[row, : len(example.tokens)] = example.tokens
            targets[row, learned] = example.tokens[learned]
            weights[row, learned] = np.where(example.changed[learned], self.changed_token_weight, 1.0)
            weights[row, start : example.start] = self.prompt_token_weight
        return {
            "input_ids": torch.from_numpy(tokens[:, :-1]),
            "targets": torch.from_numpy(targets[:, first:]),
            "weights": torch.from_numpy(weights[:, first:]),
            "lengths": torch.tensor([len(example.tokens) - 1 for example in examples]),
        }


class Mixture:
    """`len(mixture)` pairs (dataset, row) per pass over the data; `mixture.at(i, epoch)` is one of them, in the order
    of the sets.

    sizes: rows of each set. coefficients: one non-negative factor per set, or None to upsample to the largest.
    Raises UserError if they do not fit or nothing is left.
    """

    def __init__(self, sizes: Sequence[int], coefficients: Sequence[float] | None = None, seed: int = 0) -> None:
        self._sets = list(zip(sizes, _counts(sizes, coefficients), strict=True))
        self.seed = seed
        self._epoch, self._pairs = 0, self._pairs_of(0)

    def __len__(self) -> int:
        return sum(count for _, count in self._sets)

    def at(self, index: int, epoch: int = 0) -> tuple[int, int]:
        """Dataset and row number `index` of pass `epoch`."""
        if epoch != self._epoch:
            self._epoch, self._pairs = epoch, self._pairs_of(epoch)
        dataset, row = self._pairs[index]
        return int(dataset), int(row)

    def stream(self, position: int = 0) -> Iterator[tuple[int, int]]:
        """Endless pairs from `position` on: each pass over the mixture is shuffled anew."""
        while True:
            epoch, start = divmod(position, len(self))
            order = np.random.default_rng((self.seed, len(self), epoch)).permutation(len(self))
            for index in order[start:]:
                yield self.at(int(index), epoch)
            position = (epoch + 1) * len(self)

    def _pairs_of(self, epoch: int) -> np.ndarray:
        """int (rows of a pass, 2)."""
        rows = [_rows(size, count, (self.seed, index), epoch) for index, (size, count) in enumerate(self._sets)]
        return np.concatenate([np.stack([np.full(len(own), index), own], axis=1) for index, own in enumerate(rows)])


def _counts(sizes: Sequence[int], coefficients: Sequence[float] | None) -> list[int]:
    if not sizes or min(sizes) < 1:
        raise UserError(f"every dataset of a mixture needs rows, got sizes {list(sizes)}")
    if coefficients is None:
        return [max(sizes)] * len(sizes)
    if len(coefficients) != len(sizes):
        raise UserError(f"{len(coefficients)} coefficients for {len(sizes)} datasets: give one for each")
    if not all(math.isfinite(value) and value >= 0 for value in coefficients):
        raise UserError(f"coefficients {list(coefficients)}: each must be a number that is not negative")
    counts = [round(value * size) for value, size in zip(coefficients, sizes, strict=True)]
    if not sum(counts):
        raise UserError(f"coefficients {list(coefficients)} leave no row of datasets with {list(sizes)} rows")
    return counts


def _rows(size: int, count: int, seed: tuple[int, int], epoch: int) -> np.ndarray:
    """int (count,): the rows of a set in pass `epoch`. For the fraction, passes take parts of one order in turn, as
    many as it has, then those of another order."""
    copies, rest = divmod(count, size)
    turns = size // rest if rest else 1
    order, turn = divmod(epoch, turns) if rest else (0, 0)
    generator = np.random.default_rng((*seed, order) if order else seed)
    subset = np.sort(generator.permutation(size)[turn * rest : (turn + 1) * rest])
    return np.concatenate([np.tile(np.arange(size), copies), subset])
