"""Prompts to the sampler's requests and its samples to rollouts, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

from emu3.mllm.generate import Request, Sample
from emu3.mllm.text_tokenizer import TextTokenizer
from rl.rollout.protocol import Prompt, Rollout


def requests_of(
    prompts: Sequence[Prompt], seeds: Sequence[Sequence[tuple[int, ...]]], think_tokens: int
) -> list[Request]:
    """One request per prompt, one sample per seed; with `think_tokens` above 0 they think."""
    return [
        Request(prompt.ids, prompt.grammar, tuple(seeds_G), think=think_tokens > 0)
        for prompt, seeds_G in zip(prompts, seeds, strict=True)
    ]


def rollouts_of(group: Sequence[Sample], tokenizer: TextTokenizer) -> list[Rollout]:
    """The samples with their thinking as text."""
    return [
        Rollout(
            tokens=sample.tokens,
            logprobs=sample.logprobs,
            codes=sample.codes,
            reasoning=None if sample.reasoning is None else tokenizer.decode(sample.reasoning),
        )
        for sample in group
    ]
