"""The grammar in vLLM's two interfaces: each is fed as its model runner would, and both mask the same.

The second runner needs a GPU; its buffers are stood in for by tensors of the same meaning.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.mllm.vllm import inside
from emu3.mllm.vllm.rules import CompletionRule

LAYOUT = TokenLayout(text_ranks=12, codebook_size=16)
GRID = GridGrammar(LAYOUT, 3, 2, size_ids=(3, 9, 2))
PLAIN, THINKS = CompletionRule(GRID, None), CompletionRule(GridGrammar(LAYOUT, 1, 2, size_ids=(1, 9, 2)), 3)
COMPLETIONS = {
    PLAIN: GRID.completion([[0, 15], [3, 4], [15, 0]])[GRID.header_length : -2],
    THINKS: [5, 6, LAYOUT.boi, *THINKS.grammar.completion([[7, 8]])[:-2]],
}


def params(rule: CompletionRule | None) -> SamplingParams:
    return SamplingParams(extra_args=rule.arguments() if rule else None)


def legal_ids(rule: CompletionRule | None, drawn: list[int]) -> set[int]:
    if rule is None:
        return set(range(LAYOUT.vocab_size))
    low, high, also = rule.table[rule.state(len(drawn), drawn.index(LAYOUT.boi) if LAYOUT.boi in drawn else None)]
    return {*range(low, high), also}


def unmasked(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


def test_first_runner_follows_its_rows() -> None:
    """Guards the book-keeping: requests come at different times, rows are swapped, moved and taken by others."""
    processor = inside.FirstRunnerProcessor(None, torch.device("cpu"), False)  # type: ignore[arg-type]
    lists: list[list[int]] = [[], [], []]

    def step(rows: list[tuple[CompletionRule | None, int]], **update: Any) -> None:
        """rows: rule and list of each row of the batch."""
        changed = BatchUpdate(len(rows), **{"removed": [], "added": [], "moved": [], **update}) if update else None
        processor.update_state(changed)
        masked = processor.apply(torch.zeros(len(rows), LAYOUT.vocab_size))
        assert unmasked(masked) == [legal_ids(rule, lists[number]) for rule, number in rows]
        for rule, number in rows:
            lists[number].append(COMPLETIONS[rule][len(lists[number])] if rule else 1)

    step([(THINKS, 0), (None, 1)], added=[(0, params(THINKS), None, lists[0]), (1, params(None), None, lists[1])])
    step([(THINKS, 0), (None, 1), (PLAIN, 2)], added=[(2, params(PLAIN), None, lists[2])])
    step([(THINKS, 0), (None, 1), (PLAIN, 2)])
    step([(PLAIN, 2), (None, 1), (THINKS, 0)], moved=[(0, 2, MoveDirectionality.SWAP)])
    step([(PLAIN, 2), (THINKS, 0)], removed=[1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)])
    step([(PLAIN, 2), (THINKS, 0)])
    resumed = list(lists[0])  # after a preemption: a new list with all that was drawn
    lists[0] = resumed
    step([(THINKS, 0)], removed=[1], added=[(0, params(THINKS), None, resumed)])


class Runner:
    """The second runner's side: slots, their tokens, and rows in any order."""

    def __init__(self, slots: int, positions: int) -> None:
        self.tokens = torch.full((slots, positions), LAYOUT.boi, dtype=torch.int32)  # stale ones may be anything
        self.prompts = torch.zeros(slots, dtype=torch.int32)
        self.lengths = np.zeros(slots, dtype=np.int32)
        states: Any = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=slots,
            vocab_size=LAYOUT.vocab_size,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            prompt_len=SimpleNamespace(gpu=self.prompts),
        )
        self.processor = inside.SecondRunnerProcessor(None, states)  # type: ignore[arg-type]

    def add(self, slot: int, rule: CompletionRule | None, prompt: int, drawn: list[int]) -> bool:
        changes = self.processor.add_request(slot, params(rule))
        self.prompts[slot], self.lengths[slot] = prompt, prompt
        for token in drawn:
            self.draw(slot, token)
        return changes

    def draw(self, slot: int, token: int) -> None:
        self.tokens[slot, self.lengths[slot]] = token
        self.lengths[slot] += 1

    def step(self, slots: list[int], unread: int = 0) -> list[set[int]]:
        """unread: tokens of each prompt that wait for a later step."""
        order = torch.tensor(slots, dtype=torch.int32)
        positions = torch.from_numpy(self.lengths[slots] - 1 - unread)
        context = LogitsContext(
            expanded_idx_mapping=order,
            idx_mapping=order,
            idx_mapping_np=order.numpy(),
            expanded_local_pos=torch.zeros_like(order),
            input_ids=self.tokens[order.long(), positions.long()],
            pos=positions.long(),
            seq_lens_upper_bound_np=self.lengths[slots],
        )
        return unmasked(self.processor.apply(torch.zeros(len(slots), LAYOUT.vocab_size), context))


def test_second_runner_reads_where_its_slots_are() -> None:
    """Guards the positions: prompts of any length, rows in another order than slots, a prompt with `boi` in it."""
    runner = Runner(slots=4, positions=40)
    assert runner.add(3, THINKS, 5, []) and runner.add(0, PLAIN, 9, [])
    assert not runner.add(1, None, 2, [])
    drawn: dict[int, list[int]] = {3: [], 0: [], 1: []}
    rules: dict[int, CompletionRule | None] = {3: THINKS, 0: PLAIN, 1: None}
    for step in range(max(map(len, COMPLETIONS.values())) + 2):
        slots = [[3, 0, 1], [1, 3, 0]][step % 2]
        assert runner.step(slots) == [legal_ids(rules[slot], drawn[slot]) for slot in slots]
        for slot in slots:
            rule = rules[slot]
            completion = [*COMPLETIONS[rule], LAYOUT.eoi, LAYOUT.eos] if rule else [1] * 40
            token = completion[min(len(drawn[slot]), len(completion) - 1)]
            drawn[slot].append(token)
            runner.draw(slot, token)


def test_second_runner_takes_up_a_request_in_any_slot() -> None:
    """Guards what a slot keeps of the request before, and a request that comes with tokens drawn before."""
    runner = Runner(slots=2, positions=40)
    runner.add(1, PLAIN, 7, COMPLETIONS[PLAIN][:5])
    assert runner.step([1]) == [legal_ids(PLAIN, COMPLETIONS[PLAIN][:5])]
    for length in range(len(COMPLETIONS[THINKS])):
        runner.add(1, THINKS, 3, COMPLETIONS[THINKS][:length])
        assert runner.step([1]) == [legal_ids(THINKS, COMPLETIONS[THINKS][:length])]
    runner.add(1, None, 7, [])
    assert runner.step([1]) == [legal_ids(None, [])]


def test_second_runner_sleeps_without_its_tables() -> None:
    """The runner makes processors in the memory of the weights, which sleep gives away: what comes back is anything."""
    runner = Runner(slots=2, positions=40)
    runner.add(0, PLAIN, 7, [])
    for table in (runner.processor._legal_S_3, runner.processor._rule_S_4):
        table.fill_(2**31 - 1)
    for rule in (PLAIN, THINKS, None):
        runner.add(1, rule, 7, [])
        assert runner.step([1]) == [legal_ids(rule, [])]


def test_second_runner_outlives_half_a_prompt() -> None:
    """Rows of a prompt that is read in parts have no token drawn: their positions are below the first state."""
    runner = Runner(slots=1, positions=40)
    runner.add(0, THINKS, 9, [])
    assert len(runner.step([0], unread=6)) == 1


@pytest.mark.parametrize("processor", [inside.FirstRunnerProcessor, inside.SecondRunnerProcessor])
def test_a_wrong_rule_fails_its_request_alone(processor: Any) -> None:
    with pytest.raises(ValueError, match="emu3_completion"):
        processor.validate_params(SamplingParams(extra_args={"emu3_completion": [1]}))
