"""The rule's table in tensors: which state each row of a batch is in, and minus infinity where an id is not legal.

Axes: R rows, W tokens of a window on what was drawn, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_illegal(logits_R_V: Tensor, legal_R_3: Tensor) -> Tensor:
    """Set, in place, every logit outside low <= id < high and id == also to minus infinity; returns the logits.

    legal_R_3: integers (low, high, also), on the logits' device.
    """
    ids_V = torch.arange(logits_R_V.shape[1], device=logits_R_V.device)
    low_R_1, high_R_1, also_R_1 = legal_R_3.split(1, dim=1)
    illegal_R_V = ((ids_V < low_R_1) | (ids_V >= high_R_1)) & (ids_V != also_R_1)
    return logits_R_V.masked_fill_(illegal_R_V, -torch.inf)


def row_states(
    drawn_R: Tensor, window_R_W: Tensor, boi_R: Tensor, first_state_R: Tensor, thinking_states_R: Tensor
) -> Tensor:
    """`AnswerRule.state` of each row, on the device; the caller bounds it by the last state.

    drawn_R: tokens drawn so far. window_R_W: the first W of them; what stands behind the drawn ones is ignored. W may
    be 0 where no row thinks.
    """
    device = window_R_W.device
    seen_R_W = torch.arange(window_R_W.shape[1], device=device) < torch.minimum(drawn_R, thinking_states_R)[:, None]
    is_boi_R_W = (window_R_W == boi_R[:, None]) & seen_R_W
    thought_R = (is_boi_R_W.cumsum(1) == 0).sum(1)  # tokens in front of the first `boi`
    opened_R = is_boi_R_W.any(1)
    return torch.where(opened_R, thinking_states_R + drawn_R - thought_R - 1, first_state_R + drawn_R)
