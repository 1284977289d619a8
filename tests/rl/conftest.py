"""A world of a few rows, small enough that a whole RL run takes a second: 2x3 grids, 16 codes, 2 layers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_run import StubScorer, config_of

from emu3.mllm.language_model import new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing.shard_writer import ShardWriter
from emu3.train_image_editing.shards import EditRow
from rl.config import Config
from rl.train import train

CODES, HEIGHT, WIDTH = 16, 2, 3
INSTRUCTIONS = ["make it red", "remove the ball", "two balls, please"]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `vision` and `data`."""
    folder = tmp_path_factory.mktemp("world")
    train_ranks(INSTRUCTIONS * 3, 270, folder / "ranks")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks", CODES)
    model = new_language_model(
        tokenizer.layout,
        hidden_size=32,
        layers=2,
        heads=2,
        kv_heads=1,
        ffn_size=64,
        max_positions=96,
        rope_theta=100.0,
        seed=0,
    )
    save_checkpoint(model, tokenizer, folder / "model")
    vision = StillVQConfig(
        base_channels=32,
        channel_multiplier=(1,),
        num_res_blocks=1,
        attn_resolutions=(),
        codebook_size=CODES,
        temporal_downsample_factor=1,
        patch_size=4,
        norm="position",
        middle_attention=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        StillVQ(vision).save_pretrained(folder / "vision")
    rng = np.random.default_rng(0)
    rows = [
        EditRow(
            id=f"row-{index}",
            source=rng.integers(0, CODES, (HEIGHT, WIDTH)).astype(np.uint16),
            edited=None,
            instruction=INSTRUCTIONS[index % 3],
            task=("simple", "complex")[index % 2],
        )
        for index in range(6)
    ]
    writer = ShardWriter(folder / "data", {"vision_sha256": weights_digest(folder / "vision")}, 1)
    writer.write(0, rows, [])
    writer.finish()
    return folder


@pytest.fixture
def make_config(world: Path, tmp_path: Path) -> Any:
    """Builds a `Config` that writes into the test's folder."""
    return partial(config_of, world, tmp_path)


@pytest.fixture
def stub_scorer() -> type[StubScorer]:
    return StubScorer


@pytest.fixture
def run() -> Any:
    """Trains a `Config` with a stub scorer in this process and returns the lines of `metrics.jsonl`."""

    def start(config: Config, scorer: StubScorer | None = None) -> list[dict[str, Any]]:
        codec = ImageCodec(StillVQ.from_pretrained(config.vision))
        train(config, Accelerator(cpu=True), codec, scorer or StubScorer())  # type: ignore[arg-type]
        path = Path(config.output_dir) / config.run_name / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    return start
