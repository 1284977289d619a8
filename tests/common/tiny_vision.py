"""A vision tokenizer of 8x8 pixels per code with random weights, small enough for whole runs on photographs."""

from __future__ import annotations

from pathlib import Path

import torch

from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ


def save_tiny_vision(folder: Path) -> None:
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
        StillVQ(config).save_pretrained(folder)
