"""How large the model, its sequences and a step are: what estimates of memory and time are made from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import Emu3TextConfig

from emu3.tokenizer.config import StillVQConfig
from rl.config import Config

PROMPT_TOKENS, ANSWER_TOKENS = 1100, 1060
"""Of an edit at the paper's 65,536 pixels with a sentence of instruction."""


@dataclass(frozen=True)
class Sizes:
    """ranks: processes that share a step, one per device. prompt_tokens, answer_tokens: of the longest; thinking
    counts as answer. vision_parameters: of the image tokenizer."""

    model: Emu3TextConfig
    vision: StillVQConfig
    vision_parameters: int
    ranks: int
    prompt_tokens: int = PROMPT_TOKENS
    answer_tokens: int = ANSWER_TOKENS

    @property
    def width(self) -> int:
        return self.model.hidden_size

    @property
    def layers(self) -> int:
        return self.model.num_hidden_layers

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.model.num_attention_heads * self._head

    @property
    def keys(self) -> int:
        """Width of all key heads; the values have the same."""
        return (self.model.num_key_value_heads or self.model.num_attention_heads) * self._head

    @property
    def _head(self) -> int:
        head: int = getattr(self.model, "head_dim", None) or self.width // self.model.num_attention_heads
        return head

    @property
    def projections(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of one layer."""
        q, k, d, f = self.queries, self.keys, self.width, self.model.intermediate_size
        return [(d, q), (d, k), (d, k), (q, d), (d, f), (d, f), (f, d)]

    @property
    def trunk(self) -> int:
        """Parameters in the matrices of all layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.projections)

    @property
    def vocabulary(self) -> int:
        """Parameters of the embedding, and of the head."""
        return self.model.vocab_size * self.width

    @property
    def parameters(self) -> int:
        biases = self.layers * (self.queries + 2 * self.keys) if getattr(self.model, "attention_bias", False) else 0
        tables = self.vocabulary * (1 if self.model.tie_word_embeddings else 2)
        return self.trunk + biases + tables + (2 * self.layers + 1) * self.width

    def trainable(self, config: Config) -> int:
        """Parameters that have gradients."""
        if config.lora is None:
            return self.parameters
        return self.layers * config.lora.rank * sum(map(sum, self.projections))

    def packed_tokens(self, config: Config) -> int:
        """Tokens of a micro-batch: its answers, and each of their prompts once."""
        rollouts = config.compute.micro_batch
        prompts = math.ceil(rollouts / config.rollout.group_size)
        return prompts * self.prompt_tokens + rollouts * self.answer_tokens

    def prompts_of_rank(self, config: Config) -> int:
        """Prompts of a step on the rank that has most."""
        return math.ceil(config.rollout.prompts_per_step / self.ranks)
