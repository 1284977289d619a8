"""What the trainer asks of a sampling engine, and the two things that pass between them.

Whatever samples (transformers in this process, a server elsewhere), it gives tokens with the log-probabilities
under which it drew them, and takes new weights when told to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import Emu3ForCausalLM

from emu3.mllm.grammar import GridGrammar


@dataclass(frozen=True)
class Prompt:
    """One edit to sample.

    ids: tokens up to the answer, without `boi`; with thinking, its prefill included. source: uint16 codes (H, W).
    """

    id: str
    ids: tuple[int, ...]
    grammar: GridGrammar
    source: np.ndarray
    instruction: str
    task: str | None


@dataclass(frozen=True)
class Rollout:
    """One answer.

    tokens: everything after the prompt: thinking ids if any, `boi`, ..., `eos`. logprobs: float32, one per token,
    under the legal tokens at the sampling temperature, 0 where the grammar left no choice. codes: uint16 (H, W).
    reasoning: the thinking text, None without thinking.
    """

    tokens: list[int]
    logprobs: np.ndarray
    codes: np.ndarray
    reasoning: str | None


class RolloutEngine(Protocol):
    """Samples groups of rollouts under the grid grammar."""

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[list[Rollout]]:
        """One group per prompt, in order, each as soon as it is there; one rollout per seed of that prompt.

        A rollout is a function of weights, prompt and seed only.
        """
        ...

    def sync(self, model: Emu3ForCausalLM) -> None:
        """From now on sample from `model`'s present weights."""
        ...
