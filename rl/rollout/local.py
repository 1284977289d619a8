"""The sampling engine that lives in the trainer's process: `emu3.mllm.generate` on the trainer's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from transformers import Emu3ForCausalLM

from emu3.mllm.generate import generate
from emu3.mllm.text_tokenizer import TextTokenizer
from rl.config import RolloutConfig
from rl.rollout.convert import requests_of, rollouts_of
from rl.rollout.protocol import Prompt, Rollout


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
