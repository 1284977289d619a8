"""Prints how a sharded trainer keeps its weights and buffers: `stored_dtypes.py CONFIG.json`.

In a process of its own: DeepSpeed changes torch's functions and the environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import Accelerator

from rl.config_file import build_config
from rl.training.choose import make_trainer
from rl.training.zero import ZeroTrainer

if __name__ == "__main__":
    config = build_config(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    trainer, _ = make_trainer(config, Accelerator(cpu=True))
    assert isinstance(trainer, ZeroTrainer)
    buffers = [*trainer.model.buffers(), *trainer._engine.module.buffers()]
    weights = trainer.model.parameters()
    print(
        json.dumps(
            {
                "buffers": sorted({str(buffer.dtype) for buffer in buffers}),
                "weights": sorted({str(weight.dtype) for weight in weights}),
            }
        )
    )
