"""The text that a reasoning sample writes before its image: until it opens the image or its budget is spent.

Lanes stop at different steps. One that has stopped stands still, out of its own sight, while the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Emu3ForCausalLM

from emu3.mllm.lanes import Lanes
from emu3.mllm.layout import TokenLayout
from emu3.mllm.sampling import choose, head_logits


@dataclass(frozen=True)
class Thought:
    """ids: the text ids. logprobs: one per id and one for the `boi` behind them, 0.0 if the budget forced it."""

    ids: list[int]
    logprobs: np.ndarray


NO_THOUGHT = Thought([], np.zeros(1))


def think(
    model: Emu3ForCausalLM,
    layout: TokenLayout,
    lanes: Lanes,
    uniforms: Tensor,
    temperature: float,
    top_k: int | None,
) -> list[list[Thought]]:
    """Let each of the P x G lanes write text; legal are the text ids and `boi`.

    uniforms: (P, G, budget). The lanes are left behind their last text id: feeding `boi` is the caller's part.
    """
    text, boi = model.lm_head.weight[: layout.pad], model.lm_head.weight[layout.boi : layout.boi + 1]
    alive = torch.ones(uniforms.shape[:2], dtype=torch.bool, device=uniforms.device)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    for uniform in uniforms.unbind(-1):
        logits = torch.cat([head_logits(lanes.hidden, rows) for rows in (text, boi)], dim=-1)
        index, logprob = choose(logits, uniform, temperature, top_k)
        token = index.masked_fill(index == layout.pad, layout.boi)
        tokens.append(token)
        logprobs.append(logprob)
        alive = alive & (token != layout.boi)
        if not alive.any():
            break
        lanes.feed(token[:, None], alive)
    if not tokens:
        return [[NO_THOUGHT] * len(row) for row in uniforms]
    all_tokens = torch.stack(tokens, dim=-1).cpu().numpy()  # (P, G, steps)
    all_logprobs = torch.stack(logprobs, dim=-1).cpu().numpy()
    return [
        [_until_boi(layout, *lane) for lane in zip(*row, strict=True)]
        for row in zip(all_tokens, all_logprobs, strict=True)
    ]


def _until_boi(layout: TokenLayout, tokens: np.ndarray, logprobs: np.ndarray) -> Thought:
    drawn = np.flatnonzero(tokens == layout.boi)
    if len(drawn) == 0:
        return Thought(tokens.tolist(), np.append(logprobs, 0.0))
    return Thought(tokens[: drawn[0]].tolist(), logprobs[: drawn[0] + 1])
