"""A sum over all ranks, timed; started by `emu3.launch`.

    python -m emu3.launch --ranks N rl.check_node.ranks TOLD.json --megabytes 256

The first rank writes what was measured as JSON. Nothing but torch is imported.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from emu3.errors import run_main
from emu3.files import write_json

SECONDS = timedelta(seconds=120)
TURNS = 5


def all_reduce(megabytes: int) -> dict[str, Any]:
    """Sum `megabytes` MB of float32 over all ranks. Raises ArithmeticError if the sum is wrong."""
    cuda = torch.cuda.is_available()
    rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=SECONDS)
    numbers = torch.full((megabytes * 10**6 // 4,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(numbers)
    ranks = dist.get_world_size()
    if not (numbers == ranks * (ranks + 1) / 2).all():
        raise ArithmeticError(f"{backend} summed {ranks} ranks to {numbers.min().item()} ... {numbers.max().item()}")
    _finished(device)
    start = time.perf_counter()
    for _ in range(TURNS):
        dist.all_reduce(numbers.fill_(1.0))
    _finished(device)
    seconds = (time.perf_counter() - start) / TURNS
    dist.destroy_process_group()
    version = ".".join(map(str, torch.cuda.nccl.version())) if cuda else None
    return {"ranks": ranks, "backend": backend, "nccl": version, "gb_per_s": megabytes / 1e3 / seconds}


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sum numbers over all ranks.")
    parser.add_argument("told", type=Path, help="JSON file that the first rank writes")
    parser.add_argument("--megabytes", type=int, default=16, help="of float32, MB on each rank; default: %(default)s")
    options = parser.parse_args()
    told = all_reduce(options.megabytes)
    if int(os.environ["RANK"]) == 0:
        write_json(options.told, told)


if __name__ == "__main__":
    run_main(main)
