"""What the trainer asks of a sampling engine, and the two things that pass between them.

Whatever samples (transformers in this process, a server elsewhere), it gives tokens with the log-probabilities
under which it drew them, and takes new weights when told to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from emu3.mllm.grammar import GridGrammar


@dataclass(frozen=True)
class Prompt:
    """One edit to sample.

    ids: tokens up to the answer, without `boi`; with thinking, its prefill included. source: uint16 codes (H, W).
    target: those of the data set's own edit, None unless a reward compares with it.
    """

    id: str
    ids: tuple[int, ...]
    grammar: GridGrammar
    source: np.ndarray
    instruction: str
    task: str | None
    target: np.ndarray | None = None


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
    """Samples groups of rollouts under the grid grammar from the policy that it was made for.

    A step is `sample`, as often as needed, `sleep`, the update, `sync`. All ranks call `sync` at once.
    """

    probe_gap: float | None
    """Mean distance, in nats per code, between the log-probabilities of engine and trainer on a small probe after the
    last `sync`; None for an engine without weights of its own."""

    @property
    def preempted(self) -> tuple[int, int]:
        """How often an answer was interrupted since the engine was made, for want of memory for its keys and values,
        and how many tokens were computed again for it; of this rank. Samples are the same, only later."""
        ...

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[list[Rollout]]:
        """One group per prompt, in order, each as soon as it is there; one rollout per seed of that prompt.

        A rollout is a function of weights, prompt and seed only.
        """
        ...

    def sleep(self) -> None:
        """Leave the device's memory to the trainer until the next `sync`."""
        ...

    def sync(self) -> None:
        """From now on sample from the policy's present weights. Raises UserError if the engine proves not to."""
        ...
