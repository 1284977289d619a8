"""One rank of runs with a stub scorer, one after the other: `torchrun ... stub_run.py CONFIG.json ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from tiny_run import StubScorer

from emu3.errors import leave
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from rl.config_file import build_config
from rl.train import train


def run_all(paths: list[str]) -> None:
    accelerator = Accelerator(cpu=True)
    for path in paths:
        config = build_config(json.loads(Path(path).read_text(encoding="utf-8")))
        codec = ImageCodec(StillVQ.from_pretrained(config.vision))
        train(config, accelerator, codec, StubScorer())  # type: ignore[arg-type]
    accelerator.end_training()


if __name__ == "__main__":
    run_all(sys.argv[1:])
    leave(0)
