"""Log-probabilities of sampled completions under a model, with gradient: the trainer's half of `emu3.mllm.generate`.

Each group shares its prompt, and the prompt goes through the model once, in one pass with all completions
(`rl.shared_prefix`). The head is multiplied only where a token is scored, and only with the rows of the ids that are
legal there (`emu3.mllm.head`). All scored tokens of a batch form one flat vector, visual codes first.

Two schemes say what is scored. `grammar`: the tokens that were chosen, each under the distribution it was drawn
from: codes among codes, thinking tokens among text ids and `boi`; tokens that the grammar forces have probability 1
and are left out. `split` is what EARL's published code does (`separate_language_and_vision_vocabs`): codes among
codes, everything else, forced or not, among all ids below the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import Emu3ForCausalLM

from emu3.mllm.head import chosen_logprobs
from emu3.mllm.layout import GridGrammar, TokenLayout
from rl.rollout.engine import Prompt, Rollout
from rl.shared_prefix import SharedPrefix, final_states

Scheme = Literal["grammar", "split"]


@dataclass(frozen=True)
class Batch:
    """B rollouts in a packed row of T tokens, with N scored tokens.

    The hidden state at place `place_N` of the row, a token of rollout `row_N`, predicts the id with index `target_N`
    among the ids that it is scored against. The first `codes` of the N are visual codes. sampled_N: log-probabilities
    that the sampler gave.
    """

    layout: TokenLayout
    scheme: Scheme

    ids_T: Tensor
    shared: SharedPrefix
    row_N: Tensor
    place_N: Tensor
    target_N: Tensor
    codes: int
    sampled_N: Tensor


@lru_cache(maxsize=256)
def _free_offsets(grammar: GridGrammar) -> np.ndarray:
    return np.array(grammar.free_offsets())


def scored_positions(
    prompt: Prompt, rollout: Rollout, scheme: Scheme, think_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into `rollout.tokens` of the scored codes and of the other scored tokens.

    think_tokens: most thinking tokens the sampler allowed, 0 without thinking. `boi` was chosen if there was room
    for one more thinking token, else it was forced.
    """
    boi = len(rollout.tokens) - prompt.grammar.length - 1
    codes = boi + 1 + _free_offsets(prompt.grammar)
    if scheme == "grammar":
        return codes, np.arange(boi + 1 if boi < think_tokens else boi)
    # Without thinking the published prompt ends with `boi`.
    return codes, np.setdiff1d(np.arange(0 if think_tokens else 1, len(rollout.tokens)), codes)


def pack(
    rows: Sequence[tuple[Prompt, Rollout]], scheme: Scheme, think_tokens: int, device: torch.device | str = "cpu"
) -> Batch:
    """Lay out rollouts as a `Batch`. Rollouts of one prompt should be neighbours, or at least in one batch."""
    layout = rows[0][0].grammar.layout

    # 1. Cut each rollout into the prefix that it shares with its group and a branch of its own, and note what is
    # scored: for each scored token its rollout, its offset in the branch, its index among the legal ids, the sampler's
    # logprob.
    members: dict[tuple[int, ...], list[int]] = {}  # rows of each prefix
    branches: list[np.ndarray] = []
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for row, (prompt, rollout) in enumerate(rows):
        codes, others = scored_positions(prompt, rollout, scheme, think_tokens)
        scored = np.concatenate([codes, others])
        # What precedes the first scored token is forced, hence the same in the whole group: part of the prefix.
        # The token right before it opens the branch, so that every predicting position lies in the branch. The last
        # scored token is predicted and needs not be read, so the branch ends before it.
        tokens = np.array([*prompt.ids, *rollout.tokens])
        start = len(prompt.ids) + scored.min() - 1
        members.setdefault(tuple(tokens[:start].tolist()), []).append(row)
        branches.append(tokens[start : len(prompt.ids) + scored.max()])
        ids = np.array(rollout.tokens)
        targets = (ids[codes] - layout.first_code, _text_index(ids[others], layout, scheme))
        for part, positions, target in zip(parts, (codes, others), targets, strict=True):
            logprobs = rollout.logprobs[positions].astype(np.float64)
            part.append(np.stack([np.full(len(positions), row), positions - scored.min(), target, logprobs]))

    # 2. Lay the row out: all prefixes, then all branches by prefix, equal lengths side by side (one kernel call each).
    prefixes = sorted(members, key=len)
    order = [sorted(members[prefix], key=lambda row: len(branches[row])) for prefix in prefixes]
    sequences = [*map(np.array, prefixes), *(branches[row] for group in order for row in group)]
    # Where each branch starts: the end of the last prefix, then of one branch after the other, back in rollout order.
    ends = np.cumsum([len(sequence) for sequence in sequences])[len(prefixes) - 1 :]
    start_B = np.empty(len(rows), dtype=np.int64)
    start_B[np.concatenate(order)] = ends[:-1]

    # 3. One flat vector of scored tokens, all codes first: they are scored against another part of the head.
    flat_4_N = np.concatenate([*parts[0], *parts[1]], axis=1)
    row_N, position_N, target_N = flat_4_N[:3].astype(np.int64)
    return Batch(
        layout=layout,
        scheme=scheme,
        ids_T=torch.from_numpy(np.concatenate(sequences)).to(device),
        shared=SharedPrefix(
            prefixes=tuple(map(len, prefixes)),
            branches=tuple(tuple(len(branches[row]) for row in group) for group in order),
            device=torch.device(device),
        ),
        row_N=torch.from_numpy(row_N).to(device),
        place_N=torch.from_numpy(start_B[row_N] + position_N).to(device),
        target_N=torch.from_numpy(target_N).to(device),
        codes=sum(part.shape[1] for part in parts[0]),
        sampled_N=torch.from_numpy(flat_4_N[3].astype(np.float32)).to(device),
    )


def token_logprobs(model: Emu3ForCausalLM, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) with gradient and entropies (N,) without, in nats, at the sampling temperature.

    float32 whatever the precision of the model, float64 from a float64 model.
    """
    layout = batch.layout
    hidden_N_D = final_states(model, batch.ids_T, batch.shared)[batch.place_N]
    head_V_D = model.lm_head.weight
    codes_D = head_V_D[layout.first_code : layout.vocab_size]
    scored = [chosen_logprobs(hidden_N_D[: batch.codes], codes_D, batch.target_N[: batch.codes], temperature)]
    if batch.codes < len(batch.target_N):
        if batch.scheme == "grammar":
            text_D = torch.cat([head_V_D[: layout.pad], head_V_D[layout.boi : layout.boi + 1]])
        else:
            text_D = head_V_D[: layout.first_code]
        scored.append(chosen_logprobs(hidden_N_D[batch.codes :], text_D, batch.target_N[batch.codes :], temperature))
    logprobs, entropies = zip(*scored, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _text_index(ids: np.ndarray, layout: TokenLayout, scheme: Scheme) -> np.ndarray:
    """Index among the text ids; in `grammar`, `boi` stands right behind the last of them."""
    return np.where(ids == layout.boi, layout.pad, ids) if scheme == "grammar" else ids
