"""The sampling engine against plain loops: every shortcut must leave the samples as they were.

Models are tiny, random and in float64, where a sum in another order cannot reach the digit that a test looks at.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3.errors import UserError
from emu3.mllm.generate import MAX_LANES, Completion, Request, generate
from emu3.mllm.head import choose, uniform_numbers
from emu3.mllm.layout import GridGrammar, TokenLayout

LAYOUT = TokenLayout(text_ranks=12, codebook_size=16)
GRID = GridGrammar(LAYOUT, 3, 2, size_ids=(3, 9, 2))
OTHER_GRID = GridGrammar(LAYOUT, 2, 3, size_ids=(2, 9, 3))


def tiny_model(layout: TokenLayout = LAYOUT, positions: int = 128) -> Emu3ForCausalLM:
    """Two layers, grouped key-value heads, and a head steep enough that the distributions are far from uniform."""
    torch.manual_seed(5)
    config = Emu3TextConfig(
        vocab_size=layout.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        attention_dropout=0.0,
        initializer_range=0.3,
        pad_token_id=layout.pad,
        bos_token_id=layout.bos,
        eos_token_id=layout.eos,
    )
    return Emu3ForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def model() -> Emu3ForCausalLM:
    return tiny_model()


def request(prompt: int = 0, group: int = 4, grammar: GridGrammar = GRID, think: bool = False) -> Request:
    """A random prompt; its length depends on `prompt`, so that a batch of several is ragged."""
    tokens = np.random.default_rng(prompt).integers(0, LAYOUT.vocab_size, 5 + 3 * prompt % 7)
    return Request(tuple(tokens.tolist()), grammar, tuple((1, prompt, sample) for sample in range(group)), think)


def assert_same(left: list[list[Completion]], right: list[list[Completion]]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert [sample.tokens for sample in a] == [sample.tokens for sample in b]
        for one, other in zip(a, b, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-9)
            np.testing.assert_array_equal(one.codes, other.codes)
            assert one.reasoning == other.reasoning


@torch.no_grad()
def plain(
    model: Emu3ForCausalLM,
    request: Request,
    seed: tuple[int, ...],
    temperature: float = 1.0,
    top_k: int | None = None,
    think_tokens: int = 0,
) -> tuple[list[int], list[float]]:
    """One sample token by token, each from a whole forward pass over everything so far."""
    budget = think_tokens if request.think else 0
    uniforms = uniform_numbers(seed, budget + len(request.grammar.free_offsets()))
    thinking, drawn, spent = request.think, 0, 0
    completion: list[int] = []
    logprobs: list[float] = []
    offset = 0  # of the next token, counted behind boi
    while offset < request.grammar.length:
        if thinking and spent < budget:
            legal = [*range(LAYOUT.pad), LAYOUT.boi]
            uniform = uniforms[spent]
        elif LAYOUT.boi not in completion:
            legal, uniform = [LAYOUT.boi], 0.0
        else:
            legal = list(range(*request.grammar.legal(offset)))
            uniform = uniforms[min(budget + drawn, len(uniforms) - 1)]
        logits = model(torch.tensor([[*request.prompt, *completion]])).logits[0, -1, legal].numpy()
        weights = np.exp((logits - logits.max()) / (temperature or 1.0))
        weights /= weights.sum()
        kept = weights.copy()
        if top_k is not None and len(legal) > top_k:
            kept[np.argsort(weights)[:-top_k]] = 0
        choice = int(np.argmax(kept))
        if temperature > 0:
            choice = int(np.flatnonzero(np.cumsum(kept) > uniform * kept.sum())[0])
        completion.append(legal[choice])
        logprobs.append(float(np.log(weights[choice])))
        if LAYOUT.boi in completion[:-1]:
            offset += 1
            drawn += len(legal) > 1
        elif completion[-1] == LAYOUT.boi:
            thinking = False
        else:
            spent += 1
    return completion, logprobs


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1.0, None), (0.7, 5), (0.0, None)], ids=["plain", "cooled-top-k", "greedy"]
)
def test_equals_a_loop_without_cache(model: Emu3ForCausalLM, temperature: float, top_k: int | None) -> None:
    """Guards positions, masks, padding, forced tokens and cache slots at once, on ragged prompts."""
    requests = [request(0), request(1), request(2)]
    samples = generate(model, LAYOUT, requests, temperature=temperature, top_k=top_k)
    for wanted, group in zip(requests, samples, strict=True):
        for seed, sample in zip(wanted.seeds, group, strict=True):
            tokens, logprobs = plain(model, wanted, seed, temperature, top_k)
            assert sample.tokens == tokens
            np.testing.assert_allclose(sample.logprobs, logprobs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("budget", [0, 1, 6, 40])
def test_thinking_equals_a_loop_without_cache(model: Emu3ForCausalLM, budget: int) -> None:
    """Guards the ragged phase: lanes that stopped thinking early stand still while the others go on."""
    requests = [request(0, group=6, think=True), request(1, group=6, think=True)]
    samples = generate(model, LAYOUT, requests, think_tokens=budget)
    for wanted, group in zip(requests, samples, strict=True):
        for seed, sample in zip(wanted.seeds, group, strict=True):
            tokens, logprobs = plain(model, wanted, seed, think_tokens=budget)
            assert sample.tokens == tokens
            np.testing.assert_allclose(sample.logprobs, logprobs, rtol=0, atol=1e-9)
            assert sample.reasoning == tokens[: tokens.index(LAYOUT.boi)]
    lengths = [len(sample.reasoning or []) for group in samples for sample in group]
    assert max(lengths) <= budget
    if budget == 6:
        assert min(lengths) < 6 == max(lengths), "both ways out of thinking have to be seen here"


def test_thinking_forced_to_stop_has_no_log_probability(model: Emu3ForCausalLM) -> None:
    """Guards against a gradient on the `boi` that the budget, not the model, chose."""
    samples = [s for group in generate(model, LAYOUT, [request(0, 12, think=True)], think_tokens=3) for s in group]
    for sample in samples:
        at_boi = sample.logprobs[sample.tokens.index(LAYOUT.boi)]
        assert (at_boi == 0.0) == (len(sample.reasoning or []) == 3) == sample.cut


def test_a_chain_ends_where_the_positions_do() -> None:
    """Guards models with fewer positions than a chain may have tokens, as those of 3,000 are: each chain has what its
    prompt leaves, whoever shares the batch, and says that it was cut."""
    requests = [request(0, think=True), request(1, think=True)]
    room = [6, 6 + len(requests[0].prompt) - len(requests[1].prompt)]
    assert room[0] != room[1] and min(room) > 0
    model = tiny_model(positions=len(requests[0].prompt) + 1 + GRID.length + room[0])
    samples = generate(model, LAYOUT, requests, think_tokens=20)
    for wanted, budget, group in zip(requests, room, samples, strict=True):
        assert_same([group], generate(model, LAYOUT, [wanted], think_tokens=20))
        for sample in group:
            assert sample.cut == (len(sample.reasoning or []) == budget)
            assert len(wanted.prompt) + len(sample.tokens) <= model.config.max_position_embeddings
    assert {sample.cut for group in samples for sample in group} == {False, True}
    roomy = tiny_model(positions=200)
    for wanted, budget, group in zip(requests, room, samples, strict=True):
        for sample, free in zip(group, generate(roomy, LAYOUT, [wanted], think_tokens=20)[0], strict=True):
            assert sample.reasoning == (free.reasoning or [])[:budget]


@pytest.mark.parametrize("think", [False, True])
def test_sharing_the_prompt_changes_nothing(model: Emu3ForCausalLM, think: bool) -> None:
    """Guards against a lane that sees another lane's tokens, or the padding of a shorter prompt."""
    requests = [request(0, think=think), request(1, group=2, think=think), request(2, grammar=OTHER_GRID, think=think)]
    shared = generate(model, LAYOUT, requests, top_k=7, think_tokens=5)
    assert_same(shared, generate(model, LAYOUT, requests, top_k=7, think_tokens=5, share_prompt=False))
    for wanted, group in zip(requests, shared, strict=True):
        for seed, sample in zip(wanted.seeds, group, strict=True):
            alone = generate(model, LAYOUT, [replace(wanted, seeds=(seed,))], top_k=7, think_tokens=5)
            assert_same([[sample]], alone)


def test_a_large_group_keeps_its_order(model: Emu3ForCausalLM) -> None:
    """Guards the split of groups beyond MAX_LANES, also where its rest runs in an earlier batch."""
    requests = [request(0, group=3), request(1, group=MAX_LANES + 3), request(2, group=0)]
    samples = generate(model, LAYOUT, requests)
    assert [len(group) for group in samples] == [3, MAX_LANES + 3, 0]
    assert_same(samples, generate(model, LAYOUT, requests, share_prompt=False))


def test_a_sample_does_not_depend_on_the_batch(model: Emu3ForCausalLM) -> None:
    """Guards per-sample randomness: one generator for the batch would make resumed and split runs differ."""
    requests = [request(prompt, grammar=grammar) for prompt in range(3) for grammar in (GRID, OTHER_GRID)]
    together = generate(model, LAYOUT, requests)
    assert_same(together, [generate(model, LAYOUT, [alone])[0] for alone in requests])
    assert_same(together[::-1], generate(model, LAYOUT, requests[::-1]))
    last_seed = replace(requests[0], seeds=requests[0].seeds[-1:])
    assert_same([together[0][-1:]], generate(model, LAYOUT, [last_seed]))


def test_seeds_decide(model: Emu3ForCausalLM) -> None:
    """Guards against a seed that is dropped on the way: equal seeds agree, each component of a tuple matters."""
    seeds = ((0, 1, 2), (0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1))
    samples = generate(model, LAYOUT, [replace(request(), seeds=seeds)])[0]
    grids = [sample.codes.tobytes() for sample in samples]
    assert grids[0] == grids[1]
    assert len(set(grids)) == 4


@pytest.mark.parametrize("think", [False, True])
def test_every_sample_obeys_the_grammar(model: Emu3ForCausalLM, think: bool) -> None:
    """Guards the arithmetic of the completion: `GridGrammar.codes` raises on any illegal token."""
    for wanted in (request(1, 8, GRID, think), request(1, 8, OTHER_GRID, think)):
        for sample in generate(model, LAYOUT, [wanted], think_tokens=4)[0]:
            start = sample.tokens.index(LAYOUT.boi)
            assert all(token < LAYOUT.pad for token in sample.tokens[:start])
            assert wanted.grammar.codes(sample.tokens[start + 1 :]) == sample.codes.tolist()
            assert sample.codes.dtype == np.uint16
            assert len(sample.logprobs) == len(sample.tokens)
            assert (sample.reasoning is None) == (not think)
            forced = np.ones(wanted.grammar.length, dtype=bool)
            forced[wanted.grammar.free_offsets()] = False
            assert (sample.logprobs[start + 1 :][forced] == 0).all()
            assert (sample.logprobs[start + 1 :][~forced] < 0).all()


def test_frequencies_are_the_models_probabilities() -> None:
    """Guards the distribution itself, both the first code and the second one given the first.

    Pearson's chi-square over the 16 pairs of a 1x2 grid with 4 codes, 3,000 samples with fixed seeds. With another
    set of seeds a right sampler fails with probability 1e-6.
    """
    layout = TokenLayout(text_ranks=12, codebook_size=4)
    grammar = GridGrammar(layout, 1, 2, size_ids=(1, 9, 2))
    model = tiny_model(layout)
    prompt = (1, 5, 2, 7)
    requests = [Request(prompt, grammar, tuple((7, sample) for sample in range(3000)))]
    counts = np.zeros((4, 4))
    for group in generate(model, layout, requests, temperature=2.0):
        for sample in group:
            counts[*sample.codes[0]] += 1

    header = [*prompt, layout.boi, 1, 9, 2, layout.img]
    codes = range(layout.first_code, layout.vocab_size)
    with torch.no_grad():
        logits = model(torch.tensor([[*header, code] for code in codes])).logits[:, -2:, layout.first_code :]
    first, second = (logits / 2.0).softmax(-1).unbind(1)
    expected = (first[0][:, None] * second).numpy() * counts.sum()
    assert expected.min() > 5 and expected.max() > 3 * expected.min()
    statistic = ((counts - expected) ** 2 / expected).sum()
    p_value = torch.special.gammaincc(torch.tensor(15 / 2.0), torch.tensor(statistic / 2, dtype=torch.float32))
    assert p_value > 1e-6


def test_top_k_draws_only_among_the_most_probable(model: Emu3ForCausalLM) -> None:
    """Guards the cut: without it, 200 samples hold a first code outside the three most probable ones."""
    wanted = replace(request(), seeds=tuple((3, sample) for sample in range(200)))
    header = [LAYOUT.boi, *(GRID.legal(offset)[0] for offset in range(GRID.header_length))]
    with torch.no_grad():
        logits = model(torch.tensor([[*wanted.prompt, *header]])).logits[0, -1, LAYOUT.first_code :]
    best = set(logits.topk(3).indices.tolist())
    assert {int(s.codes[0, 0]) for s in generate(model, LAYOUT, [wanted], top_k=3)[0]} == best
    assert {int(s.codes[0, 0]) for s in generate(model, LAYOUT, [wanted])[0]} > best


def test_the_model_is_left_as_it_was() -> None:
    """Guards dropout during sampling (log-probabilities of another model) and an evaluation mode left behind."""
    model = tiny_model()
    steady = generate(model, LAYOUT, [request()])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    assert_same(steady, generate(model, LAYOUT, [request()]))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_gives_float32_log_probabilities(dtype: torch.dtype) -> None:
    samples = generate(tiny_model().to(dtype), LAYOUT, [request(0), request(1)])
    assert all(s.logprobs.dtype == np.float32 and np.isfinite(s.logprobs).all() for group in samples for s in group)


def test_bad_settings_get_one_line(model: Emu3ForCausalLM) -> None:
    with pytest.raises(UserError, match="temperature"):
        generate(model, LAYOUT, [request()], temperature=-0.1)
    with pytest.raises(UserError, match="top-k"):
        generate(model, LAYOUT, [request()], top_k=0)
    with pytest.raises(UserError, match="think-tokens"):
        generate(model, LAYOUT, [request(think=True)], think_tokens=-1)


def test_an_answer_beyond_the_models_positions_is_refused() -> None:
    """Guards the edge: the longest completion that fits is sampled, one token more is an error naming the request."""
    wanted = request()
    exact = tiny_model(positions=len(wanted.prompt) + 1 + GRID.length)
    generate(exact, LAYOUT, [wanted])
    too_long = replace(wanted, prompt=(0, *wanted.prompt))
    with pytest.raises(UserError, match="request 1"):
        generate(exact, LAYOUT, [wanted, too_long])
    with pytest.raises(UserError, match="request 0"):
        generate(exact, LAYOUT, [replace(wanted, think=True)], think_tokens=1)


def test_diverged_weights_are_told() -> None:
    """Guards against codes made of NaN: a diverged policy must not go on as if it had completed."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        generate(model, LAYOUT, [request()])


@pytest.mark.parametrize("think", [False, True])
def test_logits_are_not_rounded_to_the_models_precision(
    model: Emu3ForCausalLM, think: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the sampler's half of an equality: the trainer's logits of a bfloat16 model are float32 sums too."""
    drawn: list[torch.Tensor] = []

    def noting(logits: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(logits)
        return choose(logits, *arguments)

    monkeypatch.setattr("emu3.mllm.generate.choose", noting)
    half = copy.deepcopy(model).to(torch.bfloat16)
    generate(half, LAYOUT, [request(think=think)], think_tokens=4)
    for logits in drawn:
        assert logits.dtype == torch.float32 and (logits != logits.bfloat16()).float().mean() > 0.9
