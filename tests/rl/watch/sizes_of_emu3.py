"""The full-size models by their published configs, and settings to estimate."""

from __future__ import annotations

from typing import Any

from transformers import Emu3TextConfig

from emu3.tokenizer.blocks import StillVQConfig
from rl.config import Config
from rl.config_file import build_config
from rl.watch.costs import Sizes

VISION_PARAMETERS = 270_559_587


def emu3(ranks: int = 4, **changes: Any) -> Sizes:
    return Sizes(Emu3TextConfig(), StillVQConfig(), VISION_PARAMETERS, ranks, **changes)


def settings(**changes: Any) -> Config:
    """The paper's set-up with ZeRO-2 on the local engine; keyword arguments extend whole sections."""
    tree: dict[str, Any] = {
        "run_name": "r",
        "output_dir": "o",
        "model": "m",
        "vision": "v",
        "data": {"sets": ["d"]},
        "judge": {"base_url": "http://j/v1"},
        "compute": {"precision": "bf16", "zero": 2, "gradient_checkpointing": True, "reference": "sharded"},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return build_config(tree)
