"""A module on several processes of this machine, ended as one command.

    python -m emu3.launch --ranks 4 rl.train CONFIG.jsonnet [key=value ...]

torchrun without its report at the end: a rank's `error: ...` stays the last line, and its exit code is the command's.
For several machines use torchrun itself; the modules ask for nothing but its variables.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from emu3.errors import run_main


def launch(ranks: int, module: str, arguments: list[str]) -> int:
    """Run `python -m module arguments` with RANK 0 ... ranks-1; returns 0 or the first failed rank's exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    # Its warnings and its summary of a failure would bury the one line that says what to do.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(["--standalone", "--nproc-per-node", str(ranks), "-m", module, *arguments]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a module on several processes of this machine.")
    parser.add_argument("--ranks", type=int, required=True, help="number of processes, 1 or more")
    parser.add_argument("module", help="such as rl.train")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the module")
    options = parser.parse_args()
    sys.exit(launch(options.ranks, options.module, options.arguments))


if __name__ == "__main__":
    run_main(main)
