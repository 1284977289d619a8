"""One rank of a run with a stub scorer: `torchrun ... stub_run.py CONFIG.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import Accelerator
from conftest import StubScorer

from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from rl.config_file import build_config
from rl.train import train

if __name__ == "__main__":
    config = build_config(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    accelerator = Accelerator(cpu=True)
    train(config, accelerator, ImageCodec(StillVQ.from_pretrained(config.vision)), StubScorer())  # type: ignore[arg-type]
    accelerator.end_training()
