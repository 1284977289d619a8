"""Who samples: prompts in, groups of rollouts out, behind one protocol; and the engine in the trainer's process.

Whatever samples (transformers in this process, or vLLM, `rl.rollout.vllm`), it gives tokens with the log-probabilities
under which it drew them, and takes new weights when told to. The engine here is `emu3.mllm.generate` on the trainer's
own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from transformers import Emu3ForCausalLM

from emu3.mllm.generate import Completion, Request, generate
from emu3.mllm.layout import GridGrammar
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.training import ranks
from rl.config import Config, RolloutConfig

if TYPE_CHECKING:  # whose log-probabilities are those of the rollouts here
    from rl.training.policy import Trainer


@dataclass(frozen=True)
class Prompt:
    """One edit to sample.

    ids: tokens up to the completion, without `boi`; with thinking, its prefill included. source: uint16 codes (H, W).
    target: those of the dataset's own edit, None unless a reward compares with it.
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
    """One completion.

    tokens: everything after the prompt: thinking ids if any, `boi`, ..., `eos`. logprobs: float32, one per token,
    under the legal tokens at the sampling temperature, 0 where the grammar left no choice. codes: uint16 (H, W).
    reasoning: the thinking text, None without thinking. cut: whether it ended at `rollout.think_tokens`.
    """

    tokens: list[int]
    logprobs: np.ndarray
    codes: np.ndarray
    reasoning: str | None
    cut: bool = False


class RolloutEngine(Protocol):
    """Samples groups of rollouts under the grid grammar from the policy that it was made for.

    A step is `sample`, as often as needed, `sleep`, the update, `sync`. All ranks call `sync` at once.
    """

    probe_gap: float | None
    """Mean distance, in nats per code, between the log-probabilities of engine and trainer on a small probe after the
    last `sync`; None for an engine without weights of its own."""

    @property
    def preempted(self) -> tuple[int, int]:
        """How often a completion was interrupted since the engine was made, for want of memory for its keys and values,
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


def make_engine(config: Config, trainer: Trainer, tokenizer: TextTokenizer, device: torch.device) -> RolloutEngine:
    """An engine with `trainer`'s present weights. All ranks call at once. Raises UserError if it cannot run here."""
    if config.rollout.engine == "local":
        return LocalEngine(trainer.weights, tokenizer, config.rollout)
    from rl.rollout.vllm import VllmEngine

    engine = VllmEngine(trainer, tokenizer, config.rollout, config.compute, device)
    ranks.meet()  # engines start at their own pace
    engine.sync()
    return engine


class LocalEngine:
    """A `RolloutEngine` without a copy of the weights.

    weights: gives the model whole, for as long as its context is open.
    Groups that are sampled at once (`prompts_per_batch`) are yielded together, so smaller batches let the judge
    start earlier.
    """

    probe_gap: float | None = None
    preempted = (0, 0)  # what does not fit ends the run

    def __init__(
        self,
        weights: Callable[[], AbstractContextManager[Emu3ForCausalLM]],
        tokenizer: TextTokenizer,
        settings: RolloutConfig,
    ) -> None:
        self._weights = weights
        self._tokenizer = tokenizer
        self._settings = settings

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[list[Rollout]]:
        requests = requests_of(prompts, seeds, self._settings.think_tokens)
        with self._weights() as model:
            for start in range(0, len(requests), self._settings.prompts_per_batch):
                groups = generate(
                    model,
                    self._tokenizer.layout,
                    requests[start : start + self._settings.prompts_per_batch],
                    temperature=self._settings.temperature,
                    think_tokens=self._settings.think_tokens,
                )
                for group in groups:
                    yield rollouts_of(group, self._tokenizer)

    def sleep(self) -> None:
        """It has nothing of its own to give back."""

    def sync(self) -> None:
        """The weights that sample are the weights that are trained."""


def requests_of(
    prompts: Sequence[Prompt], seeds: Sequence[Sequence[tuple[int, ...]]], think_tokens: int
) -> list[Request]:
    """One request per prompt, one sample per seed; with `think_tokens` above 0 they think."""
    return [
        Request(prompt.ids, prompt.grammar, tuple(seeds_G), think=think_tokens > 0)
        for prompt, seeds_G in zip(prompts, seeds, strict=True)
    ]


def rollouts_of(group: Sequence[Completion], tokenizer: TextTokenizer) -> list[Rollout]:
    """The samples with their thinking as text."""
    return [
        Rollout(
            tokens=sample.tokens,
            logprobs=sample.logprobs,
            codes=sample.codes,
            reasoning=None if sample.reasoning is None else tokenizer.decode(sample.reasoning),
            cut=sample.cut,
        )
        for sample in group
    ]
