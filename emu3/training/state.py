"""Weights, adapters and optimizer state in training: on one process or sharded by DeepSpeed, in memory and on disk.

State on disk is by parameter: tensors as safetensors under their parameters' names, the rest as JSON. torch.save would
write a pickle and order the tensors by number, and DeepSpeed's own checkpoints are pickles of each rank's shards, which
only the same number of ranks can read. Here every sharded tensor is put together in turn and goes to files of a few
gigabytes, so that no device ever holds all of the state.

Two ways lead to the disk. `save_sharded`: one rank writes as the tensors come, and its main memory never holds all of
them either; the others help to put each together and know nothing of the disk. So an error of the disk is kept until
the end: a writer that left the loop at once would leave them waiting for it. `sharded_writer`: each rank writes a
share, from a copy in main memory while training goes on, or as `save_sharded` does where there is no room for one.

LoRA (Hu et al., 2022) is peft's: small trainable matrices beside the frozen projections of every layer,

    y = W x + (alpha / rank) B A x,   A random, B zero at the start

The adapters live inside the model's own modules, so that whatever calls it, sampler or trainer, sees them. What
leaves the run is merged: a checkpoint with W + (alpha / rank) B A, or the same tensors for a sampler elsewhere.
Merging is done on copies; W, merged and unmerged in place, would drift by a rounding in each step.

DeepSpeed is imported in the functions: it is an extra, and importing it takes seconds.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Emu3ForCausalLM

from emu3.errors import UserError
from emu3.files import read_json, write_json

TENSORS, GROUPS = "optimizer.safetensors", "optimizer.json"
MASTER, STEP = "master", "step"
MOMENTS = ("exp_avg", "exp_avg_sq")
FILE_BYTES = 2**32
WRITE_ERRORS = (OSError, SafetensorError)  # such as a full disk
ADAPTER = "adapter.safetensors"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def start_communication(device: torch.device) -> None:
    """Make DeepSpeed know the processes there are, before it reads any of its settings.

    It checks the batch size against the number of ranks that it knows, and takes a process group that torch has already
    begun, on a CPU for example, for a world of one until it knows better. Raises UserError where DeepSpeed is not
    installed.
    """
    try:
        from deepspeed import comm, ops
    except ImportError:
        raise UserError("DeepSpeed is asked for, but it is not installed: pip install deepspeed") from None
    # DeepSpeed calls torch by names of before: a warning from every rank for each of its collectives.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    backend = "gloo" if device.type == "cpu" else "nccl"
    if device.type == "cpu":
        # Or it compiles a library of collectives for inference, which training never calls: a minute at the first run,
        # and a lock for ever where that was killed. This is its list of what can be compiled here: nothing.
        vars(ops)["__compatible_ops__"] = {}
    if not torch.distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # a launcher's variable, which one process needs too
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    if not comm.is_initialized():
        comm.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def collected(tensors: Iterable[tuple[str, Tensor]], keep: bool, *, copy: bool = False) -> dict[str, Tensor]:
    """Named tensors in main memory on the rank that is to `keep` them; nothing on the others, which only take part.
    copy: those that lie there already are copied as well, so that training may go on."""
    return {name: tensor.detach().to("cpu", copy=copy).contiguous() for name, tensor in tensors if keep}


@contextmanager
def gathered(parameters: Sequence[Tensor]) -> Iterator[None]:
    """`parameters` whole on every rank for reading; those that DeepSpeed has not sharded are so already."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def save_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of `optimizer`, which holds parameters of `model`, as two files in `folder`."""
    optimizer_writer(model, optimizer, folder, copy=False)()


def optimizer_writer(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, *, copy: bool = True
) -> Callable[[], list[Path]]:
    """`save_optimizer` in two: the state is taken now, and written by the call that is returned, which may be one of
    another thread; that gives the files. copy: the state is copied, so that training may go on in between."""
    names = _names(model, optimizer)
    state = optimizer.state_dict()
    tensors = {
        f"{names[index]}/{key}": value.detach().to("cpu", copy=copy).contiguous()
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    groups = json.loads(json.dumps(state["param_groups"]))  # a copy: its learning rate changes with every step

    def write() -> list[Path]:
        save_file(tensors, folder / TENSORS)
        write_json(folder / GROUPS, groups)
        return [folder / TENSORS, folder / GROUPS]

    return write


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `save_optimizer` wrote; `optimizer` has the same parameters in the same groups.

    Raises UserError if the stored groups are others.
    """
    groups: list[dict[str, Any]] = read_json(folder / GROUPS)
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
        raise UserError(f"{folder / GROUPS} belongs to an optimizer of other parameters")
    for group in groups:
        group["betas"] = tuple(group["betas"])
    index_of = {name: index for index, name in enumerate(_names(model, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / TENSORS).items():
        name, _, kind = key.rpartition("/")
        state.setdefault(index_of[name], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters in its own order, by which its state numbers them."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def save_sharded(folder: Path | None, engine: Any, model: nn.Module) -> None:
    """Write a DeepSpeed engine's float32 weights and AdamW moments into `folder`, each tensor whole.

    All ranks take part, those with None write nothing.
    """
    writer = None if folder is None else TensorWriter(folder, "optimizer")
    for key, tensor in _whole_tensors(engine, model):
        if writer is not None:
            writer.add(key, tensor)
    if writer is not None:
        writer.close()


def sharded_writer(
    engine: Any, model: nn.Module, first: int, folder: Path, *, copy: bool = True
) -> Callable[[], list[Path]]:
    """As `save_sharded` in two, each rank with a share: the call that is returned writes what is not written yet, and
    gives the files. All ranks take part now, none then.

    copy: the share is copied to main memory, so that training may go on in between; else it is written now, a few
    gigabytes at a time. first: bytes that rank 0 has to write besides; ranks get tensors so that all write about as
    much.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    loads = [first] + [0] * (ranks - 1)
    writer = TensorWriter(folder, f"optimizer-{rank:03d}", math.inf if copy else FILE_BYTES)
    for key, tensor in _whole_tensors(engine, model):
        least = loads.index(min(loads))
        loads[least] += tensor.nbytes
        if least == rank:
            writer.add(key, tensor)
    return writer.close


def load_sharded(folder: Path, engine: Any, model: nn.Module) -> None:
    """Put back what `save_sharded` wrote, on any number of ranks. Raises UserError if it is of other parameters."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    paths = sorted(folder.glob("optimizer-*.safetensors"))

    # 1. Names and the step alone, so that a wrong folder is refused before anything is changed.
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

    # 2. A fresh optimizer has no moments to write into, and DeepSpeed's setters cannot make them.
    if step is not None:
        _make_moments(engine, step)

    # 3. One tensor at a time: each rank takes its own shard of it.
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, _, kind = key.rpartition("/")
                if kind == MASTER:
                    safe_set_full_fp32_param(parameters[name], file.get_tensor(key).to(engine.device))
                elif kind in MOMENTS:
                    safe_set_full_optimizer_state(parameters[name], file.get_tensor(key).to(engine.device), kind)


def _whole_tensors(engine: Any, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state by key: `step`, then for each parameter `name/master` and, once there was a step, its moments."""
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
    """Give an optimizer that has not stepped yet moments of zeros, to be overwritten, and `step`, its number of steps.

    step: scalar. DeepSpeed keeps the parameters that this rank updates in flat float32 tensors, one per group, and
    AdamW's state is keyed by those.
    """
    zero = engine.optimizer
    stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    flats = zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups
    on_device = any(group.get("fused") or group.get("capturable") for group in zero.optimizer.param_groups)
    for index, flat in enumerate(flats):
        state = {kind: torch.zeros_like(flat) for kind in MOMENTS}
        # Where AdamW itself would have put it: a fused step reads it on the device, another on the CPU.
        zero.optimizer.state[flat] = {STEP: step.to(flat.device if on_device else "cpu", copy=True), **state}
        if not stage_3:
            # Stage 2 finds a parameter's part of the moments through a mapping that it made before they were there.
            for parameter in zero.bit16_groups[index]:
                if parameter._hp_mapping is not None:  # None: no element of it is on this rank
                    parameter._hp_mapping.set_optim_state_fragment(flat, state)


class TensorWriter:
    """Writes `stem-00000.safetensors` and so on into `folder`, each of about `file_bytes`."""

    def __init__(self, folder: Path, stem: str, file_bytes: float = FILE_BYTES) -> None:
        self._folder = folder
        self._stem = stem
        self._file_bytes = file_bytes
        self._pending: dict[str, Tensor] = {}
        self._files: list[Path] = []
        self._error: OSError | SafetensorError | None = None

    def add(self, key: str, tensor: Tensor) -> None:
        """Take a tensor; its values are copied now."""
        if self._error is None:
            self._pending[key] = tensor.detach().to("cpu", copy=True).contiguous()
            if sum(tensor.nbytes for tensor in self._pending.values()) >= self._file_bytes:
                self._flush()

    def close(self) -> list[Path]:
        """Write what is left; returns the files. Raises the first error that there was."""
        while self._error is None and self._pending:
            self._flush()
        if self._error is not None:
            raise self._error
        return self._files

    def _flush(self) -> None:
        """Write one file of what is pending, of about `FILE_BYTES` at most."""
        part: dict[str, Tensor] = {}
        while self._pending and sum(tensor.nbytes for tensor in part.values()) < FILE_BYTES:
            key = next(iter(self._pending))
            part[key] = self._pending.pop(key)
        self._files.append(self._folder / f"{self._stem}-{len(self._files):05d}.safetensors")
        try:
            save_file(part, self._files[-1])
        except WRITE_ERRORS as error:
            self._error, self._pending = error, {}


def add_lora(model: Emu3ForCausalLM, rank: int, alpha: float, seed: int) -> Any:
    """Freeze `model` and put adapters into its projections, in place; returns peft's model around it.

    rank: of each adapter. alpha: its output is scaled by alpha / rank. seed: of the matrices A.
    Raises UserError where peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("LoRA is asked for, but peft is not installed: pip install peft") from None
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, settings)  # type: ignore[arg-type]


Present = Callable[[Sequence[Tensor]], AbstractContextManager[Any]]


def _always(_: Sequence[Tensor]) -> AbstractContextManager[Any]:
    return nullcontext()


def merged(model: nn.Module, present: Present = _always) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of `model` under the name that it has without adapters, adapters merged into copies.

    present: entered around the use of the tensors it is given, for weights that are sharded.
    """
    projections = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, tensor in model.named_parameters():
        if ".lora_" in name:
            continue
        owner, inside, kind = name.rpartition(".base_layer.")
        adapted = projections[owner] if inside and kind == "weight" else None
        with present([tensor] if adapted is None else list(adapted.parameters())):
            value = tensor.detach()
            if adapted is not None:
                value = value + adapted.get_delta_weight("default").detach().to(value.dtype)  # type: ignore[operator]
            yield name.replace(".base_layer.", "."), value


def adapters(model: nn.Module, present: Present = _always) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the adapters alone, under the names that they have in `model`."""
    for name, tensor in model.named_parameters():
        if ".lora_" in name:
            with present([tensor]):
                yield name, tensor.detach()
