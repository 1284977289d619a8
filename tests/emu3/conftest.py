"""A tiny world on disk: a language model with its tokenizer files, and a vision tokenizer of 8x8 pixels per code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emu3.mllm.language_model import new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ

CODEBOOK_SIZE = 16
LIFE_S = "600"


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, 1,024 positions; its distributions are far from uniform, so that what it reads matters."""
    folder = tmp_path_factory.mktemp("model")
    train_ranks(["make the sky purple"], 256, folder / "ranks.tiktoken")
    tokenizer = TextTokenizer.from_rank_file(folder / "ranks.tiktoken", CODEBOOK_SIZE)
    model = new_language_model(
        tokenizer.layout, hidden_size=32, layers=1, heads=2, kv_heads=1, ffn_size=32, max_positions=1024, seed=0
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 15
    save_checkpoint(model, tokenizer, folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def tiny_vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / "checkpoint"
    torch.manual_seed(0)
    config = StillVQConfig(
        base_channels=8,
        channel_multiplier=(1,),
        num_res_blocks=1,
        attn_resolutions=(),
        codebook_size=CODEBOOK_SIZE,
        temporal_downsample_factor=1,
        patch_size=8,
        norm="position",
        middle_attention=False,
        unit_codes=True,
    )
    StillVQ(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def demo_url(
    tiny_model_folder: Path, tiny_vision_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The demo page of the tiny model, served by a process that ends after `LIFE_S` seconds whatever happens, and then
    has kept nothing of what was uploaded."""
    uploads = tmp_path_factory.mktemp("uploads")
    folders = ["--model", str(tiny_model_folder), "--vision", str(tiny_vision_folder)]
    command = ["timeout", LIFE_S, sys.executable, "-m", "emu3.demo", *folders, "--image-area", "576", "--port", "0"]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(uploads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            assert line.startswith("open http://127.0.0.1:"), line
            yield line.split()[1]
        finally:
            server.terminate()
    assert list(uploads.iterdir()) == []
