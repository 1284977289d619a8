"""What stands around every use of DeepSpeed: its process group, and sharded weights made whole.

DeepSpeed is imported in the functions: it is an extra, and importing it takes seconds.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from emu3.errors import UserError


def start_communication(device: torch.device) -> None:
    """Make DeepSpeed know the processes there are, before it reads any of its settings.

    It checks the batch size against the number of ranks that it knows, and takes a process group that torch has already
    begun, on a CPU for example, for a world of one until it is told. Raises UserError where DeepSpeed is not installed.
    """
    try:
        from deepspeed import comm
    except ImportError:
        raise UserError("DeepSpeed is asked for, but it is not installed: pip install deepspeed") from None
    # DeepSpeed calls torch by names of before: a warning from every rank for each of its collectives.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    backend = "gloo" if device.type == "cpu" else "nccl"
    if not torch.distributed.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # a launcher's variable, which it wants of one process too
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    if not comm.is_initialized():
        comm.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def collected(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Named tensors in main memory on the rank that is to `keep` them; nothing on the others, which only take part."""
    return {name: tensor.cpu().contiguous() for name, tensor in tensors if keep}


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
