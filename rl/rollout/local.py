"""The sampling engine that lives in the trainer's process: `emu3.mllm.generate` on the trainer's own weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import Emu3ForCausalLM

from emu3.mllm.generate import Request, generate
from emu3.mllm.text_tokenizer import TextTokenizer
from rl.config import RolloutConfig
from rl.rollout.protocol import Prompt, Rollout


class LocalEngine:
    """A `RolloutEngine` without a copy of the weights.

    Groups that are sampled at once (`prompts_per_batch`) are yielded together, so smaller batches let the judge
    start earlier.
    """

    def __init__(self, model: Emu3ForCausalLM, tokenizer: TextTokenizer, settings: RolloutConfig) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[list[Rollout]]:
        requests = [
            Request(prompt.ids, prompt.grammar, tuple(seeds_G), think=self._settings.think_tokens > 0)
            for prompt, seeds_G in zip(prompts, seeds, strict=True)
        ]
        for start in range(0, len(requests), self._settings.prompts_per_batch):
            groups = generate(
                self._model,
                self._tokenizer.layout,
                requests[start : start + self._settings.prompts_per_batch],
                temperature=self._settings.temperature,
                think_tokens=self._settings.think_tokens,
            )
            for group in groups:
                yield [
                    Rollout(
                        tokens=sample.tokens,
                        logprobs=sample.logprobs,
                        codes=sample.codes,
                        reasoning=None if sample.reasoning is None else self._tokenizer.decode(sample.reasoning),
                    )
                    for sample in group
                ]

    def sync(self, model: Emu3ForCausalLM) -> None:
        self._model = model
