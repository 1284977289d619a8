"""Tokenized rows as training sequences, in the proportions of a mixture, and batches of them.

A row is turned into token ids when its batch is made, which takes 0.12 ms. Nothing of a dataset is held but the
numbers of the rows that can be trained on; the rows themselves are mapped (`shards.read_rows`). Which of them are too
long is known without tokenizing all texts: none has more tokens than bytes, so only rows that are near the limit by
their bytes are tokenized for it.

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

from emu3.errors import UserError
from emu3.mllm.sequence import THINK_END, THINK_PREFILL, edit_prompt, edit_target, grid_grammar, reasoning_text
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing.shards import EditRow, Rows

IGNORED = -100
LOOKED_AT = 1000


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
        self._rows, self._tokenizer, self._cot_keys = rows, tokenizer, cot_keys
        if rows.codes > tokenizer.layout.codebook_size:
            for row in rows:
                if row.edited is not None:
                    self._example(row)
        sizes, (instructions, thoughts) = rows.sizes(), rows.text_bytes(cot_keys)
        reasons = {"without a target": sizes[:, 2] == 0}
        unreasoned = ~reasons["without a target"] & (thoughts == 0) & bool(cot_keys)
        if unreasoned.any() and missing == "refuse":
            raise UserError(
                f"{rows.folder}, row {rows[int(unreasoned.argmax())].id}: no reasoning under {', '.join(cot_keys)}; "
                "--reasoning_missing plain trains such rows as plain edits, drop leaves them out"
            )
        reasons["without reasoning"] = unreasoned & (missing == "drop")
        marks = sum(len(text.encode()) for text in (THINK_PREFILL, THINK_END)) + 1
        bounds = prompt_bounds(tokenizer, sizes[:, :2], instructions) + grid_tokens(tokenizer, sizes[:, 2:]) + 1
        bounds += np.where(thoughts > 0, thoughts + marks, 0)
        kept = ~(reasons["without a target"] | reasons["without reasoning"])
        too_long = np.zeros(len(rows), dtype=bool)
        for index in np.flatnonzero(kept & (bounds > max_positions)).tolist():
            too_long[index] = len(self._example(rows[index]).tokens) > max_positions
        reasons[f"longer than {max_positions} tokens"] = too_long
        self.dropped = {reason: int(of.sum()) for reason, of in reasons.items()}
        kept &= ~too_long
        self.plain = int((unreasoned & kept).sum())
        self._indices = np.flatnonzero(kept)
        self._bounds = bounds[self._indices]
        if not len(self):
            why = ", ".join(f"{count} are {reason}" for reason, count in self.dropped.items() if count)
            more = "; --max_position_embeddings sets that length" if too_long.any() else ""
            raise UserError(f"{rows.folder} has no row to train on: of {len(rows)}, {why}{more}")

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def longest(self) -> tuple[int, int]:
        """Tokens of the longest row, and targets of the row that has most, of the 1,000 rows with most bytes."""
        examples = [self[index] for index in np.argsort(-self._bounds, kind="stable")[:LOOKED_AT]]
        return max(len(one.tokens) for one in examples), max(len(one.tokens) - one.start for one in examples)

    def __getitem__(self, index: int) -> Example:
        return self._example(self._rows[int(self._indices[index])])

    def _example(self, row: EditRow) -> Example:
        assert row.edited is not None
        return _encode(row, row.edited, self._tokenizer, self._cot_keys, self._rows)


def grid_tokens(tokenizer: TextTokenizer, sizes: np.ndarray) -> np.ndarray:
    """Tokens of image blocks, `boi` and `eoi` included: int64 (N,). sizes: heights and widths in codes, (N, 2)."""
    shapes, numbers = np.unique(sizes, axis=0, return_inverse=True)
    lengths = [grid_grammar(tokenizer, int(height), int(width)).length for height, width in shapes]
    return np.array(lengths, dtype=np.int64)[numbers.reshape(-1)]


def prompt_bounds(tokenizer: TextTokenizer, sizes: np.ndarray, instructions: np.ndarray) -> np.ndarray:
    """At most so many tokens have prompts with sources of `sizes` (N, 2) and instructions of so many bytes (N,)."""
    return 1 + grid_tokens(tokenizer, sizes) + instructions


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
