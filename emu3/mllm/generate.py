"""Edited grids of codes from the language model: the sampling engine of the editor and of reinforcement learning.

Exact shortcuts, each tested against a plain loop:
- a prompt is computed once for its whole group of samples (`lanes`);
- what the grammar forces is never sampled: the header goes with the prompt, an end of row goes with the code before
  it, the tail is not computed at all, so a grid of H x W codes takes H x W - 1 passes after the prompt's;
- only the rows of the head that belong to legal tokens are multiplied.

Requests of the same grid and group size run in lock step, others follow one after the other. With `think` a sample
first writes text, until it opens the image or its budget is spent, then the grid follows as always. Samples stop
thinking at different steps; one that has stopped stands still, out of its own sight, while the others go on.

A sample is a function of its seed, its request and the model, up to rounding: sums in another batch may differ in the
last bit, and a uniform number that falls on such a bit takes the neighbouring token. The model and the autocast
context are taken as they are; its weights have to be whole, not sharded. On a CPU without bf16 arithmetic float32 is
twice as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import Emu3ForCausalLM

from emu3.errors import UserError
from emu3.mllm.head import choose, draws_on, head_logits, uniform_numbers
from emu3.mllm.lanes import Lanes
from emu3.mllm.layout import THINK_TOKENS, GridGrammar, TokenLayout

# Lanes see nothing of each other, yet their scores are computed: larger groups repeat the prompt instead.
MAX_LANES = 16


@dataclass(frozen=True)
class Request:
    """One prompt and how many completions of it are sampled.

    prompt: token ids up to the completion, without `boi`; with `think`, up to the last token of the thinking prefill,
        or without it, where the model is to decide whether it thinks.
    seeds: one tuple of non-negative integers per sample; the group size is their number.
    """

    prompt: tuple[int, ...]
    grammar: GridGrammar
    seeds: tuple[tuple[int, ...], ...]
    think: bool = False


@dataclass(frozen=True)
class Completion:
    """One completion.

    tokens: all that follows the request's prompt: the thinking ids if any, `boi`, ..., `eos`.
    logprobs: one per token, float32 (float64 from a float64 model), natural logarithm, under the distribution over
        the legal tokens at the sampling temperature (1 where that is 0), before top-k; 0.0 where the token is forced.
    codes: (H, W) uint16. reasoning: the thinking ids, None without `think`. cut: whether they end because there was
        room for no more, so that the image was opened for the model.
    """

    tokens: list[int]
    logprobs: np.ndarray
    codes: np.ndarray
    reasoning: list[int] | None
    cut: bool = False


@torch.no_grad()
def generate(
    model: Emu3ForCausalLM,
    layout: TokenLayout,
    requests: Sequence[Request],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    think_tokens: int = THINK_TOKENS,
    share_prompt: bool = True,
) -> list[list[Completion]]:
    """Complete every request: one list of samples per request, one sample per seed, in order.

    temperature: 0 is greedy. top_k: None draws among all legal tokens. think_tokens: most thinking ids per sample, or
        as many as the model has positions left beside prompt and image.
    share_prompt: False computes the prompt for each sample, the slow reference.
    All requests of one grid are computed at once; the caller bounds memory by how many it hands over.

    Runs in evaluation mode and leaves the model in the mode it was in. Raises UserError if a setting is out of range
    or a completion does not fit the model's positions, FloatingPointError if the model's probabilities are not finite.
    """
    check_settings(temperature, top_k, think_tokens)
    positions = model.config.max_position_embeddings
    for number, request in enumerate(requests):
        check_fits(positions, request, f"request {number}")

    # Groups of at most `lanes` samples; those of one grid, size and kind are computed together.
    lanes = MAX_LANES if share_prompt else 1
    batches: dict[tuple[GridGrammar, int, bool], list[tuple[int, int]]] = {}
    for index, request in enumerate(requests):
        for start in range(0, len(request.seeds), lanes):
            key = request.grammar, len(request.seeds[start : start + lanes]), request.think
            batches.setdefault(key, []).append((index, start))

    found: dict[tuple[int, int], list[Completion]] = {}
    training = model.training
    model.eval()
    try:
        for places in batches.values():
            parts = [replace(requests[i], seeds=requests[i].seeds[start : start + lanes]) for i, start in places]
            groups = _complete(model, layout, parts, temperature, top_k, think_tokens)
            found.update(zip(places, groups, strict=True))
    finally:
        model.train(training)
    return [
        [sample for start in range(0, len(request.seeds), lanes) for sample in found[index, start]]
        for index, request in enumerate(requests)
    ]


def check_settings(temperature: float, top_k: int | None, think_tokens: int = THINK_TOKENS) -> None:
    """Raise UserError if one of them is out of range."""
    if temperature < 0:
        raise UserError(f"temperature must be 0 or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k must be 1 or more, got {top_k}")
    if think_tokens < 0:
        raise UserError(f"think-tokens must be 0 or more, got {think_tokens}")


def check_fits(positions: int, request: Request, name: str) -> None:
    """Raise UserError, naming `name`, if the model's `positions` do not hold prompt and image of `request`, or leave a
    chain of thought nothing between them."""
    if _room(positions, request) < int(request.think):
        chain = ", a chain of thought" if request.think else ""
        raise UserError(
            f"{name}: a prompt of {len(request.prompt)} tokens{chain} and an image of {1 + request.grammar.length} do "
            f"not fit the model's {positions} positions; take a smaller image or a shorter instruction"
        )


def _room(positions: int, request: Request) -> int:
    """Positions that prompt and image leave."""
    return positions - len(request.prompt) - 1 - request.grammar.length


def think_budget(positions: int, request: Request, think_tokens: int) -> int:
    """Most thinking ids of a sample: `think_tokens`, or what the model's `positions` leave; 0 without `think`."""
    return min(think_tokens, _room(positions, request)) if request.think else 0


def _complete(
    model: Emu3ForCausalLM,
    layout: TokenLayout,
    requests: Sequence[Request],
    temperature: float,
    top_k: int | None,
    think_tokens: int,
) -> list[list[Completion]]:
    """Complete requests that have grammar, group size and `think` in common, in lock step."""
    grammar, thinks, group = requests[0].grammar, requests[0].think, len(requests[0].seeds)
    positions = model.config.max_position_embeddings
    budgets = [think_budget(positions, request, think_tokens) for request in requests]
    budget, drawn = max(budgets), think_tokens if thinks else 0
    free = grammar.free_offsets()
    # Every uniform number that a sample may need, drawn beforehand: (P, G, drawn + H * W). Those of
    # the codes stand behind all that a chain could have, so that they are the same for whoever shares the batch.
    numbers = [[uniform_numbers(seed, drawn + len(free)) for seed in request.seeds] for request in requests]
    uniforms = draws_on(model.device, np.stack(numbers))
    # What the grammar forces in front of the first code: boi, "H*W", img.
    header = [layout.boi, *(grammar.legal(offset)[0] for offset in range(free[0]))]
    capacity = budget + len(header) + grammar.length

    # With a chain of thought the header is fed behind it, to each lane; without one it goes with the prompt's pass.
    if thinks:
        lanes = Lanes(model, [request.prompt for request in requests], group, capacity)
        thoughts = think(model, layout, lanes, budgets, uniforms[..., :budget], temperature, top_k)
        lanes.feed(torch.tensor(header, device=model.device)[None, :, None].expand(len(requests), -1, group))
    else:
        lanes = Lanes(model, [(*request.prompt, *header) for request in requests], group, capacity)
        thoughts = [[NO_THOUGHT] * group for _ in requests]
    codes, logprobs = _draw_codes(model, layout, lanes, grammar, uniforms[..., drawn:], temperature, top_k)
    return _samples(grammar, thinks, thoughts, codes, logprobs)


def _draw_codes(
    model: Emu3ForCausalLM,
    layout: TokenLayout,
    lanes: Lanes,
    grammar: GridGrammar,
    uniforms: Tensor,
    temperature: float,
    top_k: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the codes of each lane and feed every one with the tokens that the grammar forces behind it.

    uniforms: (P, G, H * W). Returns the codes and their log-probabilities, both (P, G, H * W).
    """
    head = model.lm_head.weight[layout.first_code : layout.vocab_size]
    free = grammar.free_offsets()
    codes: list[Tensor] = []
    logprobs: list[Tensor] = []
    for cell, uniform in enumerate(uniforms.unbind(-1)):
        # 1. a code from the rows of the head that are codes
        code, logprob = choose(head_logits(lanes.hidden, head), uniform, temperature, top_k)
        codes.append(code)
        logprobs.append(logprob)
        # 2. fed together with what is forced behind it (the end of a row); nothing follows the last code
        if cell + 1 < len(free):
            forced = [grammar.legal(offset)[0] for offset in range(free[cell] + 1, free[cell + 1])]
            tokens = [code + layout.first_code, *(torch.full_like(code, token) for token in forced)]
            lanes.feed(torch.stack(tokens, dim=1))
    return torch.stack(codes, dim=-1).cpu().numpy(), torch.stack(logprobs, dim=-1).cpu().numpy()


def _samples(
    grammar: GridGrammar, thinks: bool, thoughts: list[list[Thought]], codes: np.ndarray, logprobs: np.ndarray
) -> list[list[Completion]]:
    """Put the completions together. codes, logprobs: (P, G, H * W)."""
    if not np.isfinite(logprobs).all() or not all(np.isfinite(t.logprobs).all() for row in thoughts for t in row):
        raise FloatingPointError("the model's probabilities are not finite: its weights have diverged")
    free = grammar.free_offsets()
    shape = (*codes.shape[:2], grammar.length)
    completions = np.full(shape, grammar.completion(np.zeros((grammar.height, grammar.width), dtype=int).tolist()))
    completions[..., free] = codes + grammar.layout.first_code
    completion_logprobs = np.zeros(shape, dtype=logprobs.dtype)
    completion_logprobs[..., free] = logprobs
    grids = codes.astype(np.uint16).reshape(*codes.shape[:2], grammar.height, grammar.width)
    return [
        [
            Completion(
                tokens=[*thought.ids, grammar.layout.boi, *completions[p, g].tolist()],
                logprobs=np.concatenate([thought.logprobs, completion_logprobs[p, g]], dtype=logprobs.dtype),
                codes=grids[p, g],
                reasoning=thought.ids if thinks else None,
                cut=thought.cut,
            )
            for g, thought in enumerate(row)
        ]
        for p, row in enumerate(thoughts)
    ]


@dataclass(frozen=True)
class Thought:
    """ids: the text ids. logprobs: one per id and one for the `boi` behind them, 0.0 if the budget forced it, which
    `cut` says."""

    ids: list[int]
    logprobs: np.ndarray
    cut: bool = False


NO_THOUGHT = Thought([], np.zeros(1))


def think(
    model: Emu3ForCausalLM,
    layout: TokenLayout,
    lanes: Lanes,
    budgets: Sequence[int],
    uniforms: Tensor,
    temperature: float,
    top_k: int | None,
) -> list[list[Thought]]:
    """Let each of the P x G lanes write text; legal are the text ids and `boi`.

    budgets: most ids of the lanes of each prompt. uniforms: (P, G, largest budget). The lanes are left behind
    their last text id: feeding `boi` is the caller's part.
    """
    text, boi = model.lm_head.weight[: layout.pad], model.lm_head.weight[layout.boi : layout.boi + 1]
    most = torch.tensor(budgets, device=uniforms.device)[:, None]  # (P, 1)
    alive = (most > 0).expand(uniforms.shape[:2])
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    for step, uniform in enumerate(uniforms.unbind(-1)):
        # 1. a text id, or `boi`, which stands last among the logits
        logits = torch.cat([head_logits(lanes.hidden, rows) for rows in (text, boi)], dim=-1)
        index, logprob = choose(logits, uniform, temperature, top_k)
        token = index.masked_fill(index == layout.pad, layout.boi)
        tokens.append(token)
        logprobs.append(logprob)
        # 2. a lane that has opened its image stands still; the others are fed, up to the last that they may have
        alive = alive & (token != layout.boi)
        if not alive.any():
            break
        lanes.feed(token[:, None], alive)
        alive = alive & (step + 1 < most)
    if not tokens:
        return [[Thought([], np.zeros(1), cut=True)] * len(row) for row in uniforms]
    all_tokens = torch.stack(tokens, dim=-1).cpu().numpy()  # (P, G, steps)
    all_logprobs = torch.stack(logprobs, dim=-1).cpu().numpy()
    return [
        [_until_boi(layout, *lane) for lane in zip(tokens_G[:, :budget], logprobs_G[:, :budget], strict=True)]
        for tokens_G, logprobs_G, budget in zip(all_tokens, all_logprobs, budgets, strict=True)
    ]


def _until_boi(layout: TokenLayout, tokens: np.ndarray, logprobs: np.ndarray) -> Thought:
    drawn = np.flatnonzero(tokens == layout.boi)
    if len(drawn) == 0:
        return Thought(tokens.tolist(), np.append(logprobs, 0.0), cut=True)
    return Thought(tokens[: drawn[0]].tolist(), logprobs[: drawn[0] + 1])
