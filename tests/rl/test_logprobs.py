"""The trainer's log-probabilities: against a whole forward per rollout, against the sampler's, under any batching."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Emu3ForCausalLM

from emu3.mllm.language_model import load_language_model
from emu3.mllm.text_tokenizer import TextTokenizer
from rl.config import DataConfig, RolloutConfig
from rl.logprobs import Scheme, pack, scored_positions, token_logprobs
from rl.prompts import Prompts
from rl.rollout.engine import LocalEngine, Prompt, Rollout
from rl.shared_prefix import ATTENTION

THINK = 5
TEMPERATURE = 0.8
# The model computes in float64 but for its RMS norms and rotary angles, which transformers keeps in float32: equal
# quantities in another order of summation differ by float32 roundings there, about 1e-7 relative.
VALUES = {"rtol": 1e-6, "atol": 1e-6}
GRADIENTS = {"rtol": 1e-4, "atol": 1e-7}
Rows = list[tuple[Prompt, Rollout]]


@pytest.fixture(scope="module")
def model(world: Path) -> Emu3ForCausalLM:
    return load_language_model(world / "model", torch.float64)


def sample(world: Path, model: Emu3ForCausalLM, think_tokens: int, group: int = 4) -> Rows:
    """Groups of three prompts, whose instructions have different lengths."""
    model.set_attn_implementation("sdpa")
    tokenizer = TextTokenizer.from_pretrained(world / "model")
    prompts = Prompts(DataConfig((str(world / "data"),)), tokenizer, 96, think_tokens, seed=0).take(0, 3)
    assert len({len(prompt.ids) for prompt in prompts}) > 1
    engine = LocalEngine(
        lambda: nullcontext(model), tokenizer, RolloutConfig(think_tokens=think_tokens, temperature=TEMPERATURE)
    )
    seeds = [[(7, index, number) for number in range(group)] for index in range(len(prompts))]
    return [
        (prompt, rollout)
        for prompt, rollouts in zip(prompts, engine.sample(prompts, seeds), strict=True)
        for rollout in rollouts
    ]


def plain(model: Emu3ForCausalLM, prompt: Prompt, rollout: Rollout, scheme: Scheme, think: int) -> tuple[Tensor, ...]:
    """(codes, others): log-probabilities from all logits of the whole sequence, illegal ids set to -inf."""
    layout = prompt.grammar.layout
    ids = torch.tensor([[*prompt.ids, *rollout.tokens]])
    logits = model(input_ids=ids).logits[0] / TEMPERATURE
    text = torch.full((layout.vocab_size,), -torch.inf, dtype=torch.float64)
    text[: layout.first_code if scheme == "split" else layout.text_ranks] = 0
    text[layout.boi] = 0
    codes = torch.full((layout.vocab_size,), -torch.inf, dtype=torch.float64)
    codes[layout.first_code :] = 0
    values: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index, token in enumerate(rollout.tokens):
        is_code = token >= layout.first_code
        chosen = is_code or (token < layout.text_ranks and index < rollout.tokens.index(layout.boi))
        drew_boi = token == layout.boi and index < think
        if chosen or drew_boi or (scheme == "split" and (think > 0 or index > 0)):
            row = logits[len(prompt.ids) + index - 1] + (codes if is_code else text)
            values[not is_code].append(row.log_softmax(-1)[token])
    return tuple(torch.stack(part) if part else torch.zeros(0, dtype=torch.float64) for part in values)


def plain_batch(model: Emu3ForCausalLM, rows: Rows, scheme: Scheme, think: int) -> Tensor:
    codes, others = zip(*(plain(model, *row, scheme, think) for row in rows), strict=True)
    return torch.cat([*codes, *others])


@pytest.mark.parametrize("attention", ["eager", ATTENTION])
@pytest.mark.parametrize("think", [0, THINK])
@pytest.mark.parametrize("scheme", ["grammar", "split"])
def test_equal_to_a_whole_forward(
    world: Path, model: Emu3ForCausalLM, scheme: Scheme, think: int, attention: str
) -> None:
    """Values and gradients, in float64. Guards the shared prefix (mask, positions, owner), the slices of the head,
    off-by-one predictions, and what counts as forced; prompts differ in length, thinking completions too."""
    rows = sample(world, model, think)
    model.set_attn_implementation(attention)
    logprobs, entropies = token_logprobs(model, pack(rows, scheme, think), TEMPERATURE)
    expected = plain_batch(model, rows, scheme, think)
    torch.testing.assert_close(logprobs, expected, **VALUES)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((logprobs * weights).sum(), parameters)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), parameters)
    torch.testing.assert_close(gradients, expected_gradients, **GRADIENTS)
    assert (entropies >= 0).all() and not entropies.requires_grad


@pytest.mark.parametrize("think", [0, THINK])
def test_equal_to_the_sampler(world: Path, model: Emu3ForCausalLM, think: int) -> None:
    """The ratio of the first update is 1 only if sampler and trainer mean the same distribution, temperature and
    a `boi` that was forced at the end of the budget included."""
    rows = sample(world, model, think, group=12)
    if think:
        boi = [len(rollout.tokens) - prompt.grammar.length - 1 for prompt, rollout in rows]
        assert THINK in boi and min(boi) < THINK, "the sample has no forced or no chosen boi: change the seeds"
    batch = pack(rows, "grammar", think)
    logprobs, _ = token_logprobs(model, batch, TEMPERATURE)
    torch.testing.assert_close(logprobs.float(), batch.sampled_N, rtol=1e-5, atol=1e-5)


def test_forced_tokens_are_left_out(world: Path, model: Emu3ForCausalLM) -> None:
    """Guards the published defect: structure tokens that had no alternative, scored and trained on."""
    prompt, rollout = sample(world, model, 0)[0]
    codes, others = scored_positions(prompt, rollout, "grammar", 0)
    assert len(codes) == prompt.grammar.height * prompt.grammar.width
    assert len(others) == 0
    _, others = scored_positions(prompt, rollout, "split", 0)
    assert len(codes) + len(others) == prompt.grammar.length


def test_scored_with_a_sampler_log_probability(world: Path, model: Emu3ForCausalLM) -> None:
    """Every token that the sampler chose is scored, and no other."""
    for prompt, rollout in sample(world, model, THINK, group=12):
        scored = np.concatenate(scored_positions(prompt, rollout, "grammar", THINK))
        assert sorted(scored) == np.flatnonzero(rollout.logprobs).tolist()


def test_the_row_holds_each_prompt_once(world: Path, model: Emu3ForCausalLM) -> None:
    """Guards the saving itself, which no number shows: without it the results are the same. And equal lengths side by
    side, whatever order the rollouts come in: each run of them is a call of the attention kernel in every layer."""
    rows = sample(world, model, THINK, group=12)
    shared = pack(rows[::2] + rows[1::2], "grammar", THINK).shared
    # A prompt's last token opens each of its branches, and no completion's last scored token is in the row.
    prompts = {prompt.ids for prompt, _ in rows}
    assert sorted(shared.prefixes) == list(shared.prefixes) == sorted(len(ids) - 1 for ids in prompts)
    assert sum(map(sum, shared.branches)) < sum(len(rollout.tokens) for _, rollout in rows)
    for lengths in shared.branches:
        assert len(lengths) == 12 and list(lengths) == sorted(lengths)


@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [8]])
def test_micro_batches_do_not_change_the_gradient(world: Path, model: Emu3ForCausalLM, sizes: Sequence[int]) -> None:
    """1x8 = 8x1: guards a loss that is a mean of means, and groups cut in two by a micro-batch."""
    rows = sample(world, model, THINK)[:8]
    advantages = torch.linspace(-1, 1, 8, dtype=torch.float64)
    whole = pack(rows, "grammar", THINK)
    total = len(whole.target_N)
    gradients = [torch.zeros_like(parameter) for parameter in model.parameters()]
    start = 0
    for size in sizes:
        batch = pack(rows[start : start + size], "grammar", THINK)
        logprobs, _ = token_logprobs(model, batch, TEMPERATURE)
        advantages_N = advantages[start : start + size][batch.row_N]
        loss = -(logprobs * advantages_N).sum() / total
        for gradient, part in zip(gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            gradient += part
        start += size
    expected = plain_batch(model, rows, "grammar", THINK)
    loss = -(expected * advantages[whole.row_N]).sum() / total
    expected_gradients = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(tuple(gradients), expected_gradients, **GRADIENTS)
