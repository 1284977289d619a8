"""What vLLM loads by name: the model's class, and the grammar as a logits processor for each of its two model runners.

The first runner is the one of CPUs, and of GPUs with `VLLM_USE_V2_MODEL_RUNNER=0`; it hands out lists of the tokens
drawn so far. The second is the default on GPUs: each of its slots holds one request, and its rule's table lies on the
device. The drawn tokens are read there too, from the runner's own: nothing is copied to the host, and a request that
was interrupted and taken up again is in the right state without having been followed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.v1.sample import logits_processor as first
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample import logits_processor as second

from emu3.mllm.vllm.rules import CompletionRule, Legal, mask_illegal, row_states, rule_of

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class Emu3ForCausalLM(LlamaForCausalLM):
    """The language model over text ids and visual codes: in shape and in its tensors' names it is Llama, biases and a
    shared head included."""


class _Progress:
    """How far one request has come. drawn: vLLM's own list, which grows."""

    def __init__(self, rule: CompletionRule, drawn: list[int]) -> None:
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


class FirstRunnerProcessor(first.LogitsProcessor):
    """Restricts each request that has a rule to what is legal next; one mask for the whole batch."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        rule_of(sampling_params.extra_args)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._completions: dict[int, _Progress] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: first.BatchUpdate | None) -> None:
        process_dict_updates(self._completions, batch_update, self._completion)

    @staticmethod
    def _completion(params: SamplingParams, prompt: list[int] | None, drawn: list[int]) -> _Progress | None:
        rule = rule_of(params.extra_args)
        return None if rule is None else _Progress(rule, drawn)

    def apply(self, logits: Tensor) -> Tensor:
        if not self._completions:
            return logits
        rows, vocabulary = logits.shape
        # Only here has vLLM put the last step's tokens into the lists that it handed out.
        legal = [
            self._completions[row].legal() if row in self._completions else (0, vocabulary, vocabulary)
            for row in range(rows)
        ]
        return mask_illegal(logits, torch.tensor(legal).to(logits.device, non_blocking=True))


class SecondRunnerProcessor(second.LogitsProcessor):
    """Restricts each request that has a rule to what is legal next; one mask for the whole batch.

    Axes: R rows of logits, S slots, W tokens of the longest chain of thought, boi included.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        rule_of(sampling_params.extra_args)

    def __init__(self, vllm_config: VllmConfig, req_states: second.LogitsProcRequestState) -> None:
        self._requests = req_states
        slots, longest = req_states.max_num_reqs, req_states.all_token_ids.gpu.shape[1]
        # A request's completion fits its positions, so its states are fewer than these.
        self._legal_S_3 = torch.zeros(slots, longest, 3, dtype=torch.int32, device=req_states.device)
        # boi, first state, states of thought, last state.
        self._rule_S_4 = torch.zeros(slots, 4, dtype=torch.int32, device=req_states.device)
        self._thinking_S = np.zeros(slots, dtype=np.int64)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        rule = rule_of(sampling_params.extra_args)
        if rule is None:
            vocabulary = self._requests.vocab_size
            legal = torch.tensor([[0, vocabulary, vocabulary]], dtype=torch.int32)
            numbers = [0, 0, 0, 0]
        else:
            legal = _table(rule)
            numbers = [rule.grammar.layout.boi, rule.first_state, rule.thinking_states, len(legal) - 1]
        self._legal_S_3[req_idx, : len(legal)] = legal.to(self._requests.device)
        self._rule_S_4[req_idx] = torch.tensor(numbers, dtype=torch.int32).to(self._requests.device)
        self._thinking_S[req_idx] = numbers[2]
        return rule is not None

    def apply(self, logits: Tensor, ctx: second.LogitsContext) -> Tensor:
        slot_R = ctx.expanded_idx_mapping.long()
        prompt_R = self._requests.prompt_len.gpu[slot_R].long()
        drawn_R = ctx.pos.long() + 1 - prompt_R  # the row's own input is the last token drawn
        tokens_S = self._requests.all_token_ids.gpu
        window = torch.arange(int(self._thinking_S[ctx.idx_mapping_np].max()), device=logits.device)
        column_R_W = (prompt_R[:, None] + window).clamp_max(tokens_S.shape[1] - 1)
        window_R_W = tokens_S[slot_R[:, None], column_R_W]
        boi_R, first_R, thinking_R, last_R = self._rule_S_4[slot_R].long().unbind(1)
        state_R = row_states(drawn_R, window_R_W, boi_R, first_R, thinking_R)
        # Below 0 are rows whose prompt is not yet read to its end; what is drawn there is thrown away.
        state_R = torch.minimum(state_R.clamp_min(0), last_R)
        return mask_illegal(logits, self._legal_S_3[slot_R, state_R])


@lru_cache(maxsize=256)
def _table(rule: CompletionRule) -> Tensor:
    return torch.tensor(rule.table, dtype=torch.int32)
