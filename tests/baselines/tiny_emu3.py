"""An Emu3 with random weights and its image tokenizer, a few thousand parameters each, saved as checkpoints are."""

from __future__ import annotations

from pathlib import Path

import torch

from emu3.tokenizer.config import StillVQConfig
from emu3.tokenizer.model import StillVQ
from shapes.new_model import build


def save_emu3(data: Path, folder: Path) -> Path:
    """`folder/model` and `folder/vision`, 8x8 pixels per code; the text tokenizer is learned from `data`."""
    config = StillVQConfig(
        base_channels=32,
        channel_multiplier=(1,),
        num_res_blocks=0,
        attn_resolutions=(),
        codebook_size=64,
        temporal_downsample_factor=1,
        patch_size=8,
        norm="position",
        middle_attention=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        StillVQ(config).save_pretrained(folder / "vision")
    build([data], folder / "vision", folder / "model", ranks=300, layers=1, width=32, seed=0)
    return folder
