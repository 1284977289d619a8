"""The state of a DeepSpeed optimizer by parameter: float32 weights and AdamW's moments, whole, as safetensors.

DeepSpeed's own checkpoints are pickles of each rank's shards, which only the same number of ranks can read. Here every
tensor is put together in turn and goes to files of a few gigabytes, so that neither a device nor the main process ever
holds all of the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from emu3.errors import UserError
from emu3.training.tensor_writer import TensorWriter

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"
STEP = "step"


def save(folder: Path | None, engine: Any, model: nn.Module) -> None:
    """Write the state into `folder`. All ranks take part, those with None write nothing."""
    writer = None if folder is None else TensorWriter(folder, "optimizer")
    for key, tensor in _tensors(engine, model):
        if writer is not None:
            writer.add(key, tensor)
    if writer is not None:
        writer.close()


def load(folder: Path, engine: Any, model: nn.Module) -> None:
    """Put back what `save` wrote. Raises UserError if it belongs to other parameters."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    paths = sorted(folder.glob("optimizer-*.safetensors"))
    found = set()
    step = None
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a mapping
                if key == STEP:
                    step = file.get_tensor(STEP)
                else:
                    found.add(key.rpartition("/")[0])
    if found != parameters.keys():
        raise UserError(f"{folder} belongs to an optimizer of other parameters")
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if step is not None:
        _make_moments(engine, step)
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, _, kind = key.rpartition("/")
                if kind == MASTER:
                    safe_set_full_fp32_param(parameters[name], _on_device(file.get_tensor(key), engine))
                elif kind in MOMENTS:
                    safe_set_full_optimizer_state(parameters[name], _on_device(file.get_tensor(key), engine), kind)


def _tensors(engine: Any, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state = engine.optimizer.optimizer.state
    stepped = bool(state)
    if stepped:
        yield STEP, next(iter(state.values()))["step"].clone()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield f"{name}/{MASTER}", safe_get_full_fp32_param(parameter)
            for kind in MOMENTS if stepped else ():
                yield f"{name}/{kind}", safe_get_full_optimizer_state(parameter, kind)


def _make_moments(engine: Any, step: Tensor) -> None:
    """Give the optimizer, which has not stepped yet, moments to be overwritten, of which its shards know."""
    zero = engine.optimizer
    stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    flats = zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups
    on_device = any(group.get("fused") or group.get("capturable") for group in zero.optimizer.param_groups)
    for index, flat in enumerate(flats):
        state = {kind: torch.zeros_like(flat) for kind in MOMENTS}
        # Where AdamW itself would have put it: a fused step reads it on the device, another on the CPU.
        zero.optimizer.state[flat] = {STEP: step.to(flat.device if on_device else "cpu", copy=True), **state}
        if not stage_3:
            for parameter in zero.bit16_groups[index]:
                if parameter._hp_mapping is not None:
                    parameter._hp_mapping.set_optim_state_fragment(flat, state)


def _on_device(tensor: Tensor, engine: Any) -> Tensor:
    return tensor.to(engine.device)
