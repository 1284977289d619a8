"""Sequences and batches: what is learned, with which weight, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sft_world
import torch

from emu3.errors import UserError
from emu3.mllm.sequence import edit_prompt, edit_target, reasoning_text
from emu3.train_image_editing.dataset import IGNORED, Collator, EncodedRows, MixedRows, Mixture
from emu3.train_image_editing.objective import mean_per_row, weighted_sum
from emu3.train_image_editing.shards import EditRow, read_rows


def encoded(
    tmp_path: Path, rows: list[EditRow], cot_keys: tuple[str, ...] = (), limit: int = 512, **how: Any
) -> EncodedRows:
    folder = sft_world.data(tmp_path / "data", rows)
    return EncodedRows(read_rows(folder), sft_world.tokenizer(tmp_path), cot_keys, limit, **how)


@pytest.mark.parametrize(("cot_keys", "missing"), [((), "plain"), (("why", "how"), "plain"), (("why", "how"), "drop")])
def test_examples_are_those_of_the_plain_way(tmp_path: Path, cot_keys: tuple[str, ...], missing: Any) -> None:
    """Guards rows that are dropped by a bound on their length, or kept by one: each is tokenized here. NFC makes the
    Devanagari letter two of three bytes each."""
    texts = ["", "a", "sky, please " * 9, "\u0958" * 40, "é" * 60, "x" * 90]
    rows = []
    for number, row in enumerate(sft_world.edits(60)):
        text = texts[number % len(texts)]
        cot = [{}, {"why": text}, {"how": text, "why": "because"}, {"other": "b"}][number % 4]
        edited = None if number % 7 == 3 else row.edited
        rows.append(replace(row, instruction=f"go {text}", cot=cot, edited=edited))
    tokenizer, stored = sft_world.tokenizer(tmp_path), read_rows(sft_world.data(tmp_path / "data", rows))
    plain = []
    for row in rows:
        reasoning = reasoning_text(row.cot, cot_keys)
        if row.edited is not None and (missing == "plain" or reasoning is not None):
            prompt = edit_prompt(tokenizer, row.source, row.instruction)
            plain.append((prompt, prompt + edit_target(tokenizer, row.edited, reasoning)))
    lengths = sorted(len(tokens) for _, tokens in plain)
    for limit in {lengths[0], *lengths[:: len(lengths) // 6], lengths[-1]}:
        data = EncodedRows(stored, tokenizer, cot_keys, limit, missing)
        expected = [(len(prompt), tokens) for prompt, tokens in plain if len(tokens) <= limit]
        assert [(one.start, one.tokens.tolist()) for one in (data[index] for index in range(len(data)))] == expected
        assert data.dropped[f"longer than {limit} tokens"] == len(plain) - len(expected)
        assert sum(data.dropped.values()) == len(rows) - len(expected)
        assert data.longest == tuple(
            max(size) for size in zip(*((len(t), len(t) - s) for s, t in expected), strict=True)
        )


def test_a_batch_asks_for_the_target_and_nothing_else(tmp_path: Path) -> None:
    """A shift by one, or a label on the prompt, trains without any error."""
    rows = sft_world.edits(6)
    tokenizer = sft_world.tokenizer(tmp_path)
    data = encoded(tmp_path, rows)
    batch = Collator(tokenizer.layout.pad)([data[index] for index in range(6)])
    kept = batch["targets"].shape[1]
    assert kept < batch["input_ids"].shape[1]
    for index, row in enumerate(rows):
        assert row.edited is not None
        prompt = edit_prompt(tokenizer, row.source, row.instruction)
        target = edit_target(tokenizer, row.edited, None)
        inputs = batch["input_ids"][index].tolist()
        length = len(prompt) + len(target) - 1
        assert inputs[:length] == (prompt + target)[:-1]
        # Longer rows of the batch leave padding; what is fed there is never learned.
        next_tokens = batch["targets"][index].tolist()
        offset = len(inputs) - kept
        assert [token for token in next_tokens if token != IGNORED] == target
        first = next(place for place, token in enumerate(next_tokens) if token != IGNORED)
        assert inputs[offset + first] == prompt[-1]
        assert ((batch["weights"][index] > 0) == (batch["targets"][index] != IGNORED)).all()


def test_changed_codes_weigh_more_and_only_they(tmp_path: Path) -> None:
    row = sft_world.edits(1)[0]
    edited = row.source.copy()
    edited[1, 2] += 1
    data = encoded(tmp_path, [replace(row, edited=edited)])
    layout = sft_world.tokenizer(tmp_path).layout
    batch = Collator(layout.pad, changed_token_weight=4.0)([data[0]])
    heavy = batch["targets"][batch["weights"] == 4.0]
    assert heavy.tolist() == [layout.first_code + int(edited[1, 2])]
    assert set(batch["weights"].flatten().tolist()) == {1.0, 4.0}


def test_the_prompt_is_learned_only_when_asked_for(tmp_path: Path) -> None:
    """The prompt's first token has nothing before it and cannot be predicted."""
    rows = sft_world.edits(3)
    tokenizer = sft_world.tokenizer(tmp_path)
    data = encoded(tmp_path, rows)
    batch = Collator(tokenizer.layout.pad, prompt_token_weight=0.5)([data[index] for index in range(3)])
    assert batch["targets"].shape == batch["input_ids"].shape
    for index, row in enumerate(rows):
        assert row.edited is not None
        prompt = edit_prompt(tokenizer, row.source, row.instruction)
        target = edit_target(tokenizer, row.edited, None)
        learned = batch["targets"][index] != IGNORED
        assert batch["targets"][index][learned].tolist() == (prompt + target)[1:]
        assert batch["weights"][index][learned].tolist() == [0.5] * (len(prompt) - 1) + [1.0] * len(target)


def test_grids_of_two_shapes_are_all_change(tmp_path: Path) -> None:
    row = replace(sft_world.edits(1)[0], edited=np.zeros((3, 2), np.uint16))
    data = encoded(tmp_path, [row])
    assert data[0].changed.sum() == 6


def test_rows_that_cannot_be_trained_on_are_counted(tmp_path: Path) -> None:
    rows = [*sft_world.edits(6), replace(sft_world.edits(1)[0], edited=None)]
    assert encoded(tmp_path, rows).dropped == {
        "without a target": 1,
        "without reasoning": 0,
        "longer than 512 tokens": 0,
    }
    data = encoded(tmp_path, rows, cot_keys=("reasoning_verbose",), missing="drop")
    assert (len(data), data.dropped) == (
        2,
        {"without a target": 1, "without reasoning": 4, "longer than 512 tokens": 0},
    )
    tokenizer = sft_world.tokenizer(tmp_path)
    target = data[0].tokens[data[0].start :].tolist()
    assert rows[0].edited is not None
    assert target == edit_target(tokenizer, rows[0].edited, reasoning_text(rows[0].cot, ["reasoning_verbose"]))


def test_rows_without_the_chosen_key_are_plain_edits_as_published(tmp_path: Path) -> None:
    """Guards a think run that silently lost the rows that nobody had written a chain for."""
    rows = sft_world.edits(6)
    data = encoded(tmp_path, rows, cot_keys=("reasoning_verbose",))
    assert (len(data), data.plain, sum(data.dropped.values())) == (6, 4, 0)
    tokenizer = sft_world.tokenizer(tmp_path)
    for index, row in enumerate(rows):
        assert row.edited is not None
        text = reasoning_text(row.cot, ["reasoning_verbose"])
        assert (text is None) == (index % 3 > 0)
        assert data[index].tokens[data[index].start :].tolist() == edit_target(tokenizer, row.edited, text)
    with pytest.raises(UserError, match="row row-1: no reasoning under reasoning_verbose; --reasoning_missing plain"):
        encoded(tmp_path, rows, cot_keys=("reasoning_verbose",), missing="refuse")
    assert encoded(tmp_path, rows).plain == 0


@pytest.mark.parametrize(
    ("row", "limit", "message"),
    [
        (replace(sft_world.edits(1)[0], id="long"), 40, "of 1, 1 are longer than 40 tokens; --max_position_embeddings"),
        (
            replace(sft_world.edits(1)[0], id="foreign", source=np.full((2, 3), 16, np.uint16)),
            512,
            "row foreign: codes",
        ),
        (replace(sft_world.edits(1)[0], edited=None), 512, "no row to train on"),
    ],
)
def test_unfit_rows_are_named(tmp_path: Path, row: EditRow, limit: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoded(tmp_path, [row], limit=limit)


def test_long_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    """Guards a whole run that one instruction of 200,000 characters ended."""
    rows = sft_world.edits(4)
    rows[2] = replace(rows[2], instruction="paint it " * 22_000)
    data = encoded(tmp_path, rows)
    assert len(data) == 3 and data.dropped["longer than 512 tokens"] == 1
    assert data.longest[0] <= 512


def test_a_mixture_draws_from_each_dataset(tmp_path: Path) -> None:
    first = encoded(tmp_path / "a", sft_world.edits(4))
    second = encoded(tmp_path / "b", sft_world.edits(2, seed=9))
    mixed = MixedRows([first, second], Mixture([4, 2], [0.5, 2.0]))
    tokens = [mixed[index].tokens.tolist() for index in range(len(mixed))]
    assert len(tokens) == 2 + 4
    assert all(tokens.count(second[index].tokens.tolist()) == 2 for index in range(2))


def test_losses_against_the_definition() -> None:
    """Plain loops over positions, in the words of the docstrings."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    targets = torch.randint(0, 7, (3, 5), generator=generator)
    targets[0, :3] = targets[2, 4] = IGNORED
    weights = torch.rand(3, 5, generator=generator)
    sums, means = 0.0, []
    for row in range(3):
        losses = []
        for place in range(5):
            if targets[row, place] != IGNORED:
                loss = -float(torch.log_softmax(logits[row, place].double(), 0)[targets[row, place]])
                losses.append(loss)
                sums += loss * float(weights[row, place])
        means.append(sum(losses) / len(losses))
    learned = targets != IGNORED
    losses_N = torch.nn.functional.cross_entropy(logits[learned], targets[learned], reduction="none")
    assert float(weighted_sum(losses_N, targets, weights)) == pytest.approx(sums, rel=1e-6)
    assert mean_per_row(losses_N, targets).tolist() == pytest.approx(means, rel=1e-6)
