"""The device of a process: with several processes on a machine, each has the GPU of its number."""

from __future__ import annotations

import os

import torch


def local_device() -> torch.device:
    """The GPU number LOCAL_RANK, which torchrun sets; the first one without it; the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
