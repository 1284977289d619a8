"""Log-probabilities of sampled answers under a model, with gradient: the trainer's half of `emu3.mllm.generate`.

Each group shares its prompt, so the prompt goes through the model once: a first pass over the distinct prefixes
fills a key-value cache, the cache is laid out per rollout, and a second pass runs the rollouts' own tokens on top.
Gradients flow back through the cache. The head is multiplied only where a token is scored, and only with the rows
of the ids that are legal there (`rl.head`). All scored tokens of a batch form one flat vector, visual codes first.

Two schemes say what is scored. `grammar`: the tokens that were chosen, each under the distribution it was drawn
from: codes among codes, thinking tokens among text ids and `boi`; tokens that the grammar forces have probability 1
and are left out. `split` is what EARL's published code does (`separate_language_and_vision_vocabs`): codes among
codes, everything else, forced or not, among all ids below the codes.

Left out: gradient checkpointing of the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, Emu3ForCausalLM

from emu3.mllm.grammar import GridGrammar
from emu3.mllm.layout import TokenLayout
from rl.head import chosen_logprobs
from rl.rollout.protocol import Prompt, Rollout

Scheme = Literal["grammar", "split"]


@dataclass(frozen=True)
class Batch:
    """B rollouts over U distinct prefixes (S tokens, padded on the right), with N scored tokens.

    owner_B: prefix of each rollout. branch_B_T: what follows the prefix. The hidden state at branch position
    `position_N` of rollout `row_N` predicts the id with index `target_N` among the ids that it is scored against.
    The first `codes` of the N are visual codes. sampled_N: log-probabilities that the sampler gave.
    """

    layout: TokenLayout
    scheme: Scheme

    prefix_U_S: Tensor
    prefix_length_U: Tensor
    owner_B: Tensor
    branch_B_T: Tensor
    row_N: Tensor
    position_N: Tensor
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
    prefixes: dict[tuple[int, ...], int] = {}
    owners, branches = [], []
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for row, (prompt, rollout) in enumerate(rows):
        layout = prompt.grammar.layout
        codes, others = scored_positions(prompt, rollout, scheme, think_tokens)
        scored = np.concatenate([codes, others])
        # What precedes the first scored token is forced, hence the same in the whole group: part of the prefix.
        # The token right before it opens the branch, so that every predicting position lies in the branch.
        tokens = np.array([*prompt.ids, *rollout.tokens])
        start = len(prompt.ids) + scored.min() - 1
        owners.append(prefixes.setdefault(tuple(tokens[:start].tolist()), len(prefixes)))
        branches.append(tokens[start : len(prompt.ids) + scored.max()])
        ids = np.array(rollout.tokens)
        targets = (ids[codes] - layout.first_code, _text_index(ids[others], layout, scheme))
        for part, positions, target in zip(parts, (codes, others), targets, strict=True):
            logprobs = rollout.logprobs[positions].astype(np.float64)
            part.append(np.stack([np.full(len(positions), row), positions - scored.min(), target, logprobs]))
    flat_4_N = np.concatenate([*parts[0], *parts[1]], axis=1)
    row_N, position_N, target_N = torch.from_numpy(flat_4_N[:3].astype(np.int64)).to(device)
    return Batch(
        layout=rows[0][0].grammar.layout,
        scheme=scheme,
        prefix_U_S=_right_padded([np.array(prefix) for prefix in prefixes]).to(device),
        prefix_length_U=torch.tensor([len(prefix) for prefix in prefixes], device=device),
        owner_B=torch.tensor(owners, device=device),
        branch_B_T=_right_padded(branches).to(device),
        row_N=row_N,
        position_N=position_N,
        target_N=target_N,
        codes=sum(part.shape[1] for part in parts[0]),
        sampled_N=torch.from_numpy(flat_4_N[3].astype(np.float32)).to(device),
    )


def token_logprobs(model: Emu3ForCausalLM, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) with gradient and entropies (N,) without, in nats, at the sampling temperature.

    float32 whatever the precision of the model, float64 from a float64 model.
    """
    layout = batch.layout
    hidden_N_D = _branch_states(model, batch)[batch.row_N, batch.position_N]
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


def _branch_states(model: Emu3ForCausalLM, batch: Batch) -> Tensor:
    """Final hidden states (B, T, D) of the branches, each on top of its own prefix."""
    cache = DynamicCache(config=model.config)
    # Padded on the right and causal: no real token sees padding, so this pass needs no mask.
    model.model(input_ids=batch.prefix_U_S, past_key_values=cache, use_cache=True)
    cache.batch_select_indices(batch.owner_B)
    longest, steps = batch.prefix_U_S.shape[1], batch.branch_B_T.shape[1]
    device = batch.branch_B_T.device
    length_B_1 = batch.prefix_length_U[batch.owner_B].unsqueeze(1)
    prefix_mask_B_S = torch.arange(longest, device=device) < length_B_1
    branch_mask_B_T = torch.ones_like(batch.branch_B_T, dtype=torch.bool)
    return model.model(
        input_ids=batch.branch_B_T,
        attention_mask=torch.cat([prefix_mask_B_S, branch_mask_B_T], dim=1).long(),
        position_ids=length_B_1 + torch.arange(steps, device=device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def _text_index(ids: np.ndarray, layout: TokenLayout, scheme: Scheme) -> np.ndarray:
    """Index among the text ids; in `grammar`, `boi` stands right behind the last of them."""
    return np.where(ids == layout.boi, layout.pad, ids) if scheme == "grammar" else ids


def _right_padded(sequences: Sequence[np.ndarray]) -> Tensor:
    padded = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)
