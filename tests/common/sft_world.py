"""A world small enough to tokenize and fine-tune in a test: 2x3 grids of 16 codes, text as bytes, one layer."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainingArguments

from emu3.mllm.language_model import new_language_model, save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ
from emu3.train_image_editing.shard_writer import ShardWriter
from emu3.train_image_editing.shards import EditRow

MANIFEST = {"image_area": 384, "factor": 8, "vision_sha256": "0" * 64}


def image_bytes(seed: int, width: int = 40, height: int = 40) -> bytes:
    """A PNG of noise."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_vision(folder: Path, codebook_size: int = 64) -> None:
    """A tiny vision tokenizer with random weights."""
    torch.manual_seed(0)
    config = StillVQConfig(
        base_channels=16, channel_multiplier=(1,), num_res_blocks=1, attn_resolutions=(), codebook_size=codebook_size,
        temporal_downsample_factor=1, patch_size=8, norm="position", middle_attention=False,
    )  # fmt: skip
    StillVQ(config).save_pretrained(folder)


def tokenizer(folder: Path) -> TextTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    ranks = folder / "bytes.tiktoken"
    ranks.write_text("".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)))
    return TextTokenizer.from_rank_file(ranks, 16)


def model_folder(folder: Path) -> Path:
    text = tokenizer(folder)
    model = new_language_model(
        text.layout, hidden_size=16, layers=1, heads=2, kv_heads=1, ffn_size=32, max_positions=256, seed=0
    )
    save_checkpoint(model, text, folder / "model")
    return folder / "model"


def edits(count: int, seed: int = 0) -> list[EditRow]:
    """Rows that add one to each code of a random row of the grid; every third has a chain of thought."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        source = generator.integers(0, 15, (2, 3)).astype(np.uint16)
        line = int(generator.integers(2))
        edited = source.copy()
        edited[line] += 1
        cot = {"reasoning_verbose": f"line {line}" + " indeed" * (index % 4)} if index % 3 == 0 else {}
        rows.append(EditRow(f"row-{index}", source, edited, "raise the last one" if line else "raise one", cot))
    return rows


def data(folder: Path, rows: Sequence[EditRow], **manifest: Any) -> Path:
    writer = ShardWriter(folder, MANIFEST | manifest, shards=1)
    writer.write(0, rows, [])
    writer.finish()
    return folder


def trainer_arguments(output: Path, **values: Any) -> TrainingArguments:
    """float32 on the CPU; what `values` does not say stands still or is silent."""
    defaults: dict[str, Any] = {
        "output_dir": str(output),
        "use_cpu": True,
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**(defaults | values))
