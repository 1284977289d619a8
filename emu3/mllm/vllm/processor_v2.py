"""The grammar as a logits processor of vLLM's second model runner, the default on GPUs.

Each slot of the runner holds one request, and its rule's table lies on the device. What was drawn is read there too,
from the runner's own tokens: nothing is copied to the host, and a request that was interrupted and taken up again is
in the right state without having been followed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from emu3.mllm.vllm.rules import AnswerRule, mask_illegal, row_states, rule_of

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class AnswerProcessor(LogitsProcessor):
    """Restricts each request that has a rule to what is legal next; one mask for the whole batch.

    Axes: R rows of logits, S slots, W tokens of the longest chain of thought, boi included.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        rule_of(sampling_params.extra_args)

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._requests = req_states
        slots, longest = req_states.max_num_reqs, req_states.all_token_ids.gpu.shape[1]
        # A request's answer fits its positions, so its states are fewer than these.
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

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
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
def _table(rule: AnswerRule) -> Tensor:
    return torch.tensor(rule.table, dtype=torch.int32)
