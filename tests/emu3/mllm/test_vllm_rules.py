"""The table of the completion's states against the grammar and the thinking that it is made of, token by token."""

from __future__ import annotations

import json

import pytest
import torch

from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.mllm.vllm.rules import CompletionRule, mask_illegal, row_states, rule_of

LAYOUT = TokenLayout(text_ranks=12, codebook_size=16)
GRID = GridGrammar(LAYOUT, 3, 2, size_ids=(3, 9, 2))
RULES = [CompletionRule(GRID, think_tokens) for think_tokens in (None, 0, 1, 4)]


def completions(rule: CompletionRule) -> list[list[int]]:
    """One completion for each length of thought that the rule allows, `boi` in it if it is drawn, up to `eof`."""
    grid = GRID.completion([[0, 15], [3, 4], [15, 0]])[:-2]
    if rule.think_tokens is None:
        return [grid[GRID.header_length :]]
    return [[*([7] * length), LAYOUT.boi, *grid] for length in range(rule.think_tokens + 1)]


def legal_by_definition(rule: CompletionRule, drawn: list[int]) -> set[int]:
    if rule.think_tokens is None:
        return set(range(*GRID.legal(GRID.header_length + len(drawn))))
    if LAYOUT.boi in drawn:
        return set(range(*GRID.legal(len(drawn) - drawn.index(LAYOUT.boi) - 1)))
    text = set(range(LAYOUT.pad)) if len(drawn) < rule.think_tokens else set()
    return text | {LAYOUT.boi}


@pytest.mark.parametrize("rule", RULES)
def test_every_state_has_the_legal_ids(rule: CompletionRule) -> None:
    """Guards each border: the last token of thought, boi itself, the header, the ends of rows."""
    for completion in completions(rule):
        for drawn in range(len(completion)):
            opened = completion.index(LAYOUT.boi) if LAYOUT.boi in completion[:drawn] else None
            low, high, also = rule.table[rule.state(drawn, opened)]
            assert {*range(low, high), also} == legal_by_definition(rule, completion[:drawn])
            assert completion[drawn] in {*range(low, high), also}
    assert rule.most_tokens == max(map(len, completions(rule)))


@pytest.mark.parametrize("rule", RULES)
def test_what_vllm_asks_for_behind_the_end_is_in_the_table(rule: CompletionRule) -> None:
    """An engine that schedules ahead asks once more before it sees that the completion is finished."""
    last = completions(rule)[-1]
    opened = last.index(LAYOUT.boi) if LAYOUT.boi in last else None
    asked = [rule.table[rule.state(len(last) + ahead, opened)] for ahead in range(3)]
    assert [low for low, _, _ in asked] == [LAYOUT.eoi, LAYOUT.eos, LAYOUT.eos]


def test_plain_answers_have_their_header_in_the_prompt() -> None:
    assert RULES[0].opening == [LAYOUT.boi, 3, 9, 2, LAYOUT.img]
    assert RULES[1].opening == []


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_travels_as_numbers(rule: CompletionRule) -> None:
    assert rule_of(json.loads(json.dumps(rule.arguments()))) == rule
    assert rule_of({"another": 1}) is None and rule_of(None) is None


@pytest.mark.parametrize(
    "numbers", [5, [], [12, 16, 3, 2, -1], [12, 16, 0, 2, -1, 3], [12, 16, 3, 2, -2, 3], ["a"] * 6]
)
def test_numbers_that_are_no_rule_are_refused(numbers: object) -> None:
    with pytest.raises(ValueError, match="emu3_completion"):
        rule_of({"emu3_completion": numbers})


def test_row_states_equal_the_rule() -> None:
    """Guards the second runner's reading of a window of tokens: stale tokens behind the drawn ones, with a boi among
    them, belong to the slot's last request."""
    width = max(rule.thinking_states for rule in RULES)
    rows, expected = [], []
    for rule in RULES:
        for completion in completions(rule):
            for drawn in range(len(completion) + 1):  # here no state is beyond the table's last
                window = [*completion[:drawn], *[LAYOUT.boi] * width][:width]
                rows.append((drawn, LAYOUT.boi, rule.first_state, rule.thinking_states, *window))
                opened = completion.index(LAYOUT.boi) if LAYOUT.boi in completion[:drawn] else None
                expected.append(rule.state(drawn, opened))
    drawn_R, boi_R, first_R, thinking_R, *window_W = torch.tensor(rows).unbind(1)
    assert row_states(drawn_R, torch.stack(window_W, 1), boi_R, first_R, thinking_R).tolist() == expected


def test_row_states_without_a_window() -> None:
    """No request of the batch thinks."""
    states = row_states(
        torch.tensor([0, 5]), torch.empty(2, 0), torch.tensor([9, 9]), torch.tensor([4, 4]), torch.tensor([0, 0])
    )
    assert states.tolist() == [4, 9]


def test_mask_leaves_the_legal_logits_alone() -> None:
    legal = [(2, 5, 2), (0, 3, 7), (6, 7, 6), (0, 8, 8)]
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    masked = mask_illegal(logits.clone(), torch.tensor(legal))
    for row, (low, high, also) in enumerate(legal):
        for token in range(8):
            wanted = logits[row, token].item() if low <= token < high or token == also else -torch.inf
            assert masked[row, token].item() == wanted
