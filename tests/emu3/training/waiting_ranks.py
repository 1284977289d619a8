"""Two ranks whose device group gives up after TIMEOUT seconds, and a rank 0 that is slower: `waiting_ranks.py WHAT`."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed import distributed_c10d

from emu3.errors import UserError, run_main
from emu3.training import ranks

TIMEOUT, SLOW = 8, 12  # so many seconds that no machine starts its ranks farther apart


def slow() -> dict[str, int]:
    time.sleep(SLOW)
    return {"answer": 42}


def full(path: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", path)


def fault(error: Exception) -> None:
    raise error


def told(error: Exception) -> str:
    try:
        ranks.on_first(lambda: fault(error))
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "nothing"


def timeouts() -> list[float]:
    """Of every group, in the order in which they were made."""
    backends = [group._get_backend(distributed_c10d.torch.device("cpu")) for group in distributed_c10d._world.pg_map]
    return [backend.options._timeout.total_seconds() for backend in backends]


def everything() -> dict[str, object]:
    mine = dist.get_rank()
    if mine == 0:
        time.sleep(SLOW)
    ranks.meet()  # the host's group is made here
    found: dict[str, object] = {"on_first": ranks.on_first(slow)}
    found["gather"] = ranks.gather({"rank": mine})
    found["faults"] = [
        told(UserError("no such run")),
        told(OSError(errno.ENOSPC, "No space left on device", "weights")),
        told(SafetensorError("I/O error")),
        told(KeyError("a bug")),
    ]
    dist.new_group()  # as DeepSpeed makes one
    found["before"] = timeouts()
    ranks.set_device_timeout(timedelta(seconds=TIMEOUT))
    found["after"] = timeouts()
    return found


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    mine, what = dist.get_rank(), sys.argv[1]
    if what == "everything":
        Path(sys.argv[2], f"{mine}.json").write_text(json.dumps(everything()))
    elif what == "device":
        if mine == 0:
            time.sleep(SLOW)
        dist.barrier()
    elif what == "gone":
        ranks.meet()
        if mine == 1:
            raise UserError("no such column")
        ranks.meet()
    elif what == "killed":
        ranks.LAUNCHER_SECONDS = 0.0
        ranks.meet()
        if mine == 1:
            os.kill(os.getpid(), 9)
        ranks.meet()
    dist.destroy_process_group()


if __name__ == "__main__":
    run_main(main)
