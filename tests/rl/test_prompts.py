"""The order of the prompts, and what is left out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emu3.errors import UserError
from emu3.mllm.sequence import THINK_PREFILL
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing.shard_writer import ShardWriter
from emu3.train_image_editing.shards import EditRow
from rl.config import DataConfig
from rl.prompts import Prompts


@pytest.fixture
def tokenizer(world: Path) -> TextTokenizer:
    return TextTokenizer.from_pretrained(world / "model")


def test_a_position_is_all_the_state(world: Path, tokenizer: TextTokenizer) -> None:
    """Guards the published defect: a resumed run that repeats a batch and is one off from then on."""
    data = DataConfig((str(world / "data"),))
    first = [prompt.id for prompt in Prompts(data, tokenizer, 96, 0, seed=3).take(0, 20)]
    again = Prompts(data, tokenizer, 96, 0, seed=3)
    assert [prompt.id for position in range(0, 20, 5) for prompt in again.take(position, 5)] == first
    assert sorted(first[:6]) == sorted(first[6:12]) and first[:6] != first[6:12]
    assert [prompt.id for prompt in Prompts(data, tokenizer, 96, 0, seed=4).take(0, 20)] != first


def test_rows_that_do_not_fit_are_dropped_and_counted(world: Path, tokenizer: TextTokenizer) -> None:
    """Guards a run that dies hundreds of steps in, on the first long instruction; the bound itself is exact."""
    data = DataConfig((str(world / "data"),))
    everything = Prompts(data, tokenizer, 96, 0, seed=0)
    needed = sorted({len(prompt.ids) + 1 + prompt.grammar.length for prompt in everything.take(0, 6)})
    assert everything.dropped == 0
    assert Prompts(data, tokenizer, needed[-1], 0, seed=0).dropped == 0
    assert Prompts(data, tokenizer, needed[-1] - 1, 0, seed=0).dropped == 2
    with pytest.raises(UserError, match="none of 6 rows fits"):
        Prompts(data, tokenizer, needed[0] - 1, 0, seed=0)


def test_thinking_prompts_end_with_the_prefill(world: Path, tokenizer: TextTokenizer) -> None:
    data = DataConfig((str(world / "data"),))
    (plain,), (thinking,) = (Prompts(data, tokenizer, 160, think, seed=0).take(0, 1) for think in (0, 8))
    assert thinking.ids == (*plain.ids, *tokenizer.encode(THINK_PREFILL))


def test_targets_are_there_only_where_they_are_wanted(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Guards: the source's codes in the place of the edit's; a decode per group that no reward looks at."""
    source, edited = (np.full((2, 3), code, np.uint16) for code in (1, 2))
    writer = ShardWriter(tmp_path / "data", {}, 1)
    writer.write(0, [EditRow("row", source, edited, "make it red")], [])
    writer.finish()
    data = DataConfig((str(tmp_path / "data"),))
    (plain,), (compared,) = (
        Prompts(data, tokenizer, 96, 0, 0, targets=targets).take(0, 1) for targets in (False, True)
    )
    assert plain.target is None
    assert compared.target is not None and np.array_equal(compared.target, edited)
    assert np.array_equal(compared.source, source)


def test_a_set_without_targets_is_named_at_the_start(world: Path, tokenizer: TextTokenizer) -> None:
    """Guards: a run that ends at the first such row, days in."""
    data = DataConfig((str(world / "data"),))
    with pytest.raises(UserError, match=r"data: 6 of 6 rows have no edited image.* reward\.groundscore"):
        Prompts(data, tokenizer, 96, 0, seed=0, targets=True)
