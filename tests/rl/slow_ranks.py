"""One rank of a run whose device group gives up after 15 seconds while rank 0 takes 20: `slow_ranks.py CONFIG.json
WHAT`, so many that no machine lets ranks drift as far apart.

WHAT: `host` for the run as it is; `device` lets ranks wait for each other in the device's group, as they did.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tiny_run import StubScorer
from torch.distributed import distributed_c10d

import rl.train
from emu3.errors import run_main
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from emu3.training import ranks
from rl import checkpoint
from rl.config_file import build_config
from rl.reward.scores import Outcome

SLOW = 20.0


class SlowOnce(Future[Outcome]):
    def result(self, timeout: float | None = None) -> Outcome:
        time.sleep(SLOW)
        return super().result(timeout)


class SlowScorer(StubScorer):
    """Takes its time for the first reply of the run."""

    def submit(self, *images: Any, **options: Any) -> Future[Outcome]:
        future = super().submit(*images, **options)
        if self.calls > 1:
            return future
        slow = SlowOnce()
        slow.set_result(future.result())
        return slow


def make_saving_slow() -> None:
    """The model of the first checkpoint takes its time, that of the second meets a full disk."""
    write, calls = checkpoint.save_checkpoint, 0

    def slow(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            time.sleep(SLOW)
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "model")
        write(*arguments, **options)

    checkpoint.save_checkpoint = slow


def is_for_the_first(*_: Any) -> None:
    raise AssertionError("hashing 119 GB is done once")


def main() -> None:
    config = build_config(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    accelerator = rl.train.start_ranks(config)
    scorer = StubScorer()
    if accelerator.is_main_process:
        make_saving_slow()
        scorer = SlowScorer()
    else:
        checkpoint.newest = rl.train.weights_digest = is_for_the_first
    if sys.argv[2] == "device":
        ranks._host_group = lambda: dist.group.WORLD
        ranks.LAUNCHER_SECONDS = 0.0
    rl.train.train(config, accelerator, ImageCodec(StillVQ.from_pretrained(config.vision)), scorer)  # type: ignore[arg-type]
    backends = [group._get_backend(accelerator.device) for group in distributed_c10d._world.pg_map]
    found = sorted({backend.options._timeout.total_seconds() for backend in backends})
    accelerator.print(f"timeouts of {len(backends)} groups: {found}", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    run_main(main)
