"""A module on several processes, on this machine or on several, ended as one command.

    python -m emu3.launch --ranks 4 rl.train CONFIG.jsonnet [key=value ...]
    NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 MASTER_PORT=29500 python -m emu3.launch --ranks 4 rl.train ...

torchrun without its report at the end: a rank's `error: ...` stays the last line, and its exit code is the command's.
With NNODES above 1 the same command runs on each machine, NODE_RANK counting them from 0 and MASTER_ADDR naming the
first. A machine does not end because another one did, unless its own ranks find out: whatever started the commands has
to (Slurm: `srun --kill-on-bad-exit`).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from emu3.errors import PARENT, UserError, run_main, signals_to_end
from emu3.flags import CommandParser
from emu3.settings import COUNT

MASTER_PORT = "29500"


def launch(ranks: int, module: str, arguments: list[str]) -> int:
    """Run `python -m module arguments` in `ranks` processes of this machine, with torchrun's variables.

    Returns 0 or the exit code of the rank that failed first. Raises UserError for variables that do not fit.
    """
    where = machines(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    # Its warnings and its summary of a failure would bury the one line that says what to do, and so would the warnings
    # of torch's C++ half: on GPUs it complains behind that line about process groups that nobody took down.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[PARENT] = str(os.getpid())
    # Not torchrun's: its handlers would give the ranks 30 seconds to save what takes minutes.
    forwarded = _forward_signals()
    handled = ["--signals-to-handle", "SIGQUIT"]
    try:
        run(parse_args([*where, *handled, "--nproc-per-node", str(ranks), "-m", module, *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0 and not forwarded:
            name = signal.Signals(-failure.exitcode).name
            who = f"rank {rank}, process {failure.pid}"
            print(f"error: {who}, was ended by {name}{_hint(name)}", file=sys.stderr)
        if forwarded:
            return 128 + forwarded[0]
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def _forward_signals() -> list[int]:
    """Hand signals on to the ranks, which may save before they end; returns a list of those that came."""
    came: list[int] = []

    def forward(number: int, _: Any) -> None:
        came.append(number)
        for process in _children():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    for number in signals_to_end():
        signal.signal(number, forward)
    return came


def _children() -> list[int]:
    """The processes that this one has started and that are there."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(file.parent.name))
    return found


def _hint(name: str) -> str:
    return ": often for want of main memory (dmesg names the process)" if name == "SIGKILL" else ""


def machines(environment: Mapping[str, str]) -> list[str]:
    """torchrun's flags for one machine, or for NNODES of them. Raises UserError for variables that do not fit."""
    count = _number(environment, "NNODES", "1")
    if count < 2:
        return ["--standalone"]
    for name in ("NODE_RANK", "MASTER_ADDR"):
        if not environment.get(name):
            raise UserError(f"NNODES is {count}, but {name} is not set: NODE_RANK=0 ... {count - 1}, MASTER_ADDR=host")
    rank = _number(environment, "NODE_RANK", "")
    if rank >= count:
        raise UserError(f"NODE_RANK is {rank}, but NNODES={count} machines count from 0 to {count - 1}")
    port = _number(environment, "MASTER_PORT", MASTER_PORT)
    address = environment["MASTER_ADDR"]
    return [f"--nnodes={count}", f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    text = environment.get(name) or default
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r}, not a number")
    return int(text)


def main() -> None:
    parser = CommandParser(description="Run a module on several processes.")
    parser.add_argument("--ranks", type=COUNT, required=True, help="number of processes on this machine, 1 or more")
    parser.add_argument("module", help="such as rl.train")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the module")
    options = parser.parse_args()
    sys.exit(launch(options.ranks, options.module, options.arguments))


if __name__ == "__main__":
    run_main(main)
