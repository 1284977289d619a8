"""The state of a DeepSpeed optimizer by parameter: float32 weights and AdamW's moments, whole, as safetensors.

DeepSpeed's own checkpoints are pickles of each rank's shards, which only the same number of ranks can read. Here every
tensor is put together in turn and goes to files of a few gigabytes, so that neither a device nor the main process ever
holds all of the state. One rank writes; the others help to put each tensor together and know nothing of the disk. So an
error of the disk is kept until the end: a writer that left the loop at once would leave them waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from emu3.errors import UserError

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


FILE_BYTES = 2**32
WRITE_ERRORS = (OSError, SafetensorError)  # such as a full disk


class TensorWriter:
    """Writes `stem-00000.safetensors` and so on into `folder`."""

    def __init__(self, folder: Path, stem: str, file_bytes: int = FILE_BYTES) -> None:
        self._folder = folder
        self._stem = stem
        self._file_bytes = file_bytes
        self._pending: dict[str, Tensor] = {}
        self._files = 0
        self._error: OSError | SafetensorError | None = None

    def add(self, key: str, tensor: Tensor) -> None:
        """Take a tensor; its values are copied now."""
        if self._error is None:
            self._pending[key] = tensor.detach().to("cpu", copy=True).contiguous()
            if sum(tensor.nbytes for tensor in self._pending.values()) >= self._file_bytes:
                self._flush()

    def close(self) -> None:
        """Write what is left. Raises the first error that there was."""
        if self._error is None and self._pending:
            self._flush()
        if self._error is not None:
            raise self._error

    def _flush(self) -> None:
        try:
            save_file(self._pending, self._folder / f"{self._stem}-{self._files:05d}.safetensors")
        except WRITE_ERRORS as error:
            self._error = error
        self._pending = {}
        self._files += 1
