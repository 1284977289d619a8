"""An optimizer's state put back into partitions, where the device that they lie on is told from the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from emu3.training.zero_state import MOMENTS, STEP, _make_moments


@pytest.mark.parametrize(("group", "device"), [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_step_lies_where_adamw_reads_it(group: dict[str, bool], device: str, stage: int) -> None:
    """A fused step on a GPU ends with an error where the count lies on the CPU: every resumed run did. Partitions on
    `meta` are not on the CPU either."""
    flat = torch.zeros(4, device="meta")
    zero = SimpleNamespace(optimizer=SimpleNamespace(state={}, param_groups=[group]))
    if stage == 3:
        zero.fp32_partitioned_groups_flat = [flat]
    else:
        zero.single_partition_of_fp32_groups, zero.bit16_groups = [flat], [[]]
    _make_moments(SimpleNamespace(optimizer=zero), torch.tensor(7.0))
    state = zero.optimizer.state[flat]
    assert state[STEP].device.type == device and state[STEP].dtype == torch.float32
    assert all(state[kind].device.type == "meta" and state[kind].shape == flat.shape for kind in MOMENTS)
