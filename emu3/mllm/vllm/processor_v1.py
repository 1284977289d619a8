"""The grammar as a logits processor of vLLM's first model runner, which CPUs use, and GPUs with
`VLLM_USE_V2_MODEL_RUNNER=0`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from emu3.mllm.vllm.rules import AnswerRule, Legal, mask_illegal, rule_of

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class _Answer:
    """How far one request has come. drawn: vLLM's own list, which grows."""

    def __init__(self, rule: AnswerRule, drawn: list[int]) -> None:
        self._rule = rule
        self._drawn = drawn
        self._read = 0
        self._opened: int | None = None

    def legal(self) -> Legal:
        boi = self._rule.grammar.layout.boi
        if self._rule.thinking_states and self._opened is None and boi in self._drawn[self._read :]:
            self._opened = self._drawn.index(boi, self._read)
        self._read = len(self._drawn)
        return self._rule.table[self._rule.state(len(self._drawn), self._opened)]


class AnswerProcessor(LogitsProcessor):
    """Restricts each request that has a rule to what is legal next; one mask for the whole batch."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        rule_of(sampling_params.extra_args)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._answers: dict[int, _Answer] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._answers, batch_update, self._answer)

    @staticmethod
    def _answer(params: SamplingParams, prompt: list[int] | None, drawn: list[int]) -> _Answer | None:
        rule = rule_of(params.extra_args)
        return None if rule is None else _Answer(rule, drawn)

    def apply(self, logits: Tensor) -> Tensor:
        if not self._answers:
            return logits
        rows, vocabulary = logits.shape
        # Only here has vLLM put the last step's tokens into the lists that it handed out.
        legal = [
            self._answers[row].legal() if row in self._answers else (0, vocabulary, vocabulary) for row in range(rows)
        ]
        return mask_illegal(logits, torch.tensor(legal).to(logits.device, non_blocking=True))
