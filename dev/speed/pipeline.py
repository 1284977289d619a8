"""Tokenising a data set end to end: files in, codes on the disk, against the loop that the published pipeline runs."""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import Emu3ImageProcessor, Emu3VQVAE

from dev.speed.measure import Speed, seconds
from emu3.tokenizer.images import scale_image
from emu3.tokenizer.random_vision import random_vqvae, save_baai
from emu3.train_image_editing.prepare_data import PrepareArguments, prepare

PAIRS = 8
SIDE = 128


def tokenise(turns: int) -> list[Speed]:
    """Seconds per pair. The network has the published shape at a quarter of its width, or one turn took minutes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        vqvae = random_vqvae(base_channels=64, hidden_size=256)
        save_baai(vqvae, root / "vision")
        _write_pairs(root / "pairs.parquet")
        outputs: Iterator[Path] = (root / f"out-{number}" for number in itertools.count())

        def ours() -> None:
            prepare(
                PrepareArguments(
                    dataset_name=str(root / "pairs.parquet"),
                    source="local",
                    output_path=str(next(outputs)),
                    model_path=str(root / "vision"),
                    original_image_key="input",
                    edited_image_key="output",
                    image_area=SIDE * SIDE,
                )
            )

        ours_s, peer_s = seconds(ours, lambda: _loop(vqvae, root / "pairs.parquet", next(outputs)), turns)
    peer_is = f"one picture at a time through transformers.Emu3VQVAE, one .pth per pair; {SIDE}x{SIDE}"
    return [Speed("tokenise_pipeline", ours_s / PAIRS, peer_s / PAIRS, "s/pair", None, peer_is)]


def _write_pairs(path: Path) -> None:
    rng = np.random.default_rng(0)

    def picture() -> dict[str, object]:
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((512, 512), Image.Resampling.BICUBIC).save(file, "JPEG")
        return {"bytes": file.getvalue(), "path": None}

    rows = [{"input": picture(), "output": picture(), "instruction": "make it brighter"} for _ in range(PAIRS)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _loop(vqvae: Emu3VQVAE, pairs: Path, output: Path) -> None:
    output.mkdir()
    processor = Emu3ImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def encode(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            scaled = scale_image(image, SIDE * SIDE, 8)
        inputs = processor([scaled], return_tensors="pt")
        with torch.no_grad():
            [codes] = vqvae.encode(inputs["pixel_values"], inputs["image_sizes"]).image_tokens
        grid: np.ndarray = codes.numpy()
        return grid

    for number, row in enumerate(pq.read_table(pairs).to_pylist()):
        record = {"original_image": encode(row["input"]["bytes"]), "edited_image": encode(row["output"]["bytes"])}
        torch.save(record | {"CoT": {}, "instruction": row["instruction"]}, output / f"{number}.pth")
