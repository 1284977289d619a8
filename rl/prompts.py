"""The prompts of a run: tokenized datasets, mixed, in an endless seeded order.

Prompt number i of a run is a function of (data, coefficients, seed, i), so a position is all the state there is: a
resumed run takes up the prompt that the interrupted one would have taken next.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice

import numpy as np

from emu3.errors import UserError
from emu3.mllm.layout import GridGrammar
from emu3.mllm.sequence import THINK_PREFILL, edit_prompt, grid_grammar
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing.dataset import Mixture, grid_tokens, prompt_bounds
from emu3.train_image_editing.shards import EditRow, read_rows
from rl.config import DataConfig
from rl.rollout.engine import Prompt


class Prompts:
    """Endless prompts over datasets of edits.

    sets: the datasets. max_positions: of the model; rows whose prompt and longest completion do not fit are left out
    and counted in `dropped`. largest_grid: codes of the largest image among the others. targets: whether prompts carry
    the dataset's own edit. Raises UserError if a set is missing, malformed, has no row that fits, or one without the
    edit that is asked for."""

    def __init__(
        self,
        data: DataConfig,
        tokenizer: TextTokenizer,
        max_positions: int,
        think_tokens: int,
        seed: int,
        targets: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._grammar = lru_cache(maxsize=None)(lambda height, width: grid_grammar(tokenizer, height, width))
        self._prefill = tokenizer.encode(THINK_PREFILL) if think_tokens else []
        self.sets = [read_rows(folder) for folder in data.sets]
        fitting, sizes = [], [rows.sizes() for rows in self.sets]
        for rows, grids in zip(self.sets, sizes, strict=True):
            # A text has no more tokens than bytes: only rows that are near the limit by their bytes are tokenized.
            most = prompt_bounds(tokenizer, grids[:, :2], rows.text_bytes()[0]) + grid_tokens(tokenizer, grids[:, :2])
            fits = most + len(self._prefill) + 1 + think_tokens <= max_positions
            for index in np.flatnonzero(~fits).tolist():
                fits[index] = self._tokens(rows[index]) + think_tokens <= max_positions
            fitting.append(np.flatnonzero(fits))
        for folder, rows, grids, kept in zip(data.sets, self.sets, sizes, fitting, strict=True):
            if not len(kept):
                chain = f" with a chain of thought of rollout.think_tokens={think_tokens}" if think_tokens else ""
                raise UserError(f"{folder}: none of {len(rows)} rows fits the model's {max_positions} positions{chain}")
            without = int((grids[kept, 2] == 0).sum()) if targets else 0
            if without:
                raise UserError(
                    f"{folder}: {without} of {len(kept)} rows have no edited image, with which "
                    "reward.groundscore compares; set it to 0 or choose other data.sets"
                )
        self._fitting = fitting
        self._targets = targets
        self.dropped = sum(map(len, self.sets)) - sum(map(len, fitting))
        self.largest_grid = max(
            int(grids[kept, :2].astype(np.int64).prod(axis=1).max()) for grids, kept in zip(sizes, fitting, strict=True)
        )
        self._mixture = Mixture([len(kept) for kept in fitting], data.coefficients, seed)

    def take(self, position: int, count: int) -> list[Prompt]:
        """Prompts number `position` to `position + count - 1` of the endless order."""
        pairs = islice(self._mixture.stream(position), count)
        return [self._prompt(self.sets[index][int(self._fitting[index][row])]) for index, row in pairs]

    def _prompt(self, row: EditRow) -> Prompt:
        return Prompt(
            id=row.id,
            ids=(*edit_prompt(self._tokenizer, row.source, row.instruction), *self._prefill),
            grammar=self._row_grammar(row),
            source=row.source,
            instruction=row.instruction,
            task=row.task,
            target=row.edited if self._targets else None,
        )

    def _tokens(self, row: EditRow) -> int:
        """Tokens of prompt and completion: bos, two image blocks (one with eos for its boi), `boi` and the text."""
        grid = self._row_grammar(row).length
        return 1 + grid + len(self._tokenizer.encode(row.instruction)) + len(self._prefill) + 1 + grid

    def _row_grammar(self, row: EditRow) -> GridGrammar:
        height, width = row.source.shape
        return self._grammar(height, width)
