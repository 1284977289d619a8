"""How large the model, its sequences and a step are: what estimates of memory and time are made from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emu3.tokenizer.config import StillVQConfig
from emu3.training.activations import ModelSizes, Pass, Scored
from rl.config import Config

PROMPT_TOKENS, ANSWER_TOKENS, FORCED_TOKENS = 1100, 1060, 36
"""Of an edit at the paper's 65,536 pixels with a sentence of instruction; forced ones have but one legal id."""


@dataclass(frozen=True)
class Sizes(ModelSizes):
    """vision_parameters: of the image tokenizer. ranks: processes that share a step, one per device. prompt_tokens,
    answer_tokens: of the longest; thinking counts as answer. forced_tokens: of an answer, those that are no codes and
    no thinking."""

    vision: StillVQConfig
    vision_parameters: int
    ranks: int
    prompt_tokens: int = PROMPT_TOKENS
    answer_tokens: int = ANSWER_TOKENS
    forced_tokens: int = FORCED_TOKENS

    def packed_tokens(self, config: Config) -> int:
        """Tokens of a micro-batch: its answers, and each of their prompts once."""
        rollouts = config.compute.micro_batch
        prompts = math.ceil(rollouts / config.rollout.group_size)
        return prompts * self.prompt_tokens + rollouts * self.answer_tokens

    def prompts_of_rank(self, config: Config) -> int:
        """Prompts of a step on the rank that has most."""
        return config.rollout.prompts_of_rank(self.ranks)

    def micro_batch(self, config: Config, *, trained: bool = True) -> Pass:
        """What goes forward and back at once. trained: False is the reference, which goes forward."""
        compute = config.compute
        tokens, element = self.packed_tokens(config), 2 if compute.precision == "bf16" else 4
        return Pass(
            self,
            tokens,
            self._scored(config),
            element=element,
            stream=element if compute.zero else 4,
            checkpointing=trained and compute.gradient_checkpointing,
            lora_rank=lora_rank(config),
            seen=tokens if compute.attention == "eager" else 0,
        )

    def _scored(self, config: Config) -> tuple[Scored, ...]:
        """Codes among codes, and the rest as the scheme has it (`rl.logprobs`)."""
        rollouts, thinking, codebook = (
            config.compute.micro_batch,
            config.rollout.think_tokens,
            self.vision.codebook_size,
        )
        codes = Scored(rollouts * (self.answer_tokens - self.forced_tokens - thinking), codebook, sliced=True)
        text = self.model.vocab_size - codebook
        if config.objective.scheme == "split":
            return codes, Scored(rollouts * (self.forced_tokens + thinking), text, sliced=True)
        return (codes, Scored(rollouts * thinking, text, sliced=True, copied=True)) if thinking else (codes,)


def lora_rank(config: Config) -> int | None:
    return None if config.lora is None else config.lora.rank
