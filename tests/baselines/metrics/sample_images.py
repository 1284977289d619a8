"""Samples for metrics: smooth synthetic images always, photographs of AURORA-Bench where the file is there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from baselines.metrics.image_metric import EditedSample

AURORA_FILE = Path(__file__).parents[3] / "../shared/data/aurora-bench-dev.parquet"


def waves(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """An image with edges and slopes: noise alone looks the same at every place."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        128 + 100 * np.sin(x * random.uniform(0.05, 0.4) + random.uniform(0, 6)) * np.cos(y * random.uniform(0.05, 0.4))
        for _ in range(3)
    ]
    pixels = np.stack(channels, -1) + random.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def sample(seed: int = 0, **fields: Any) -> EditedSample:
    """A row whose three images differ."""
    defaults = {
        "source": waves(seed),
        "edited": waves(seed + 100),
        "target": waves(seed + 200),
        "instruction": "add a cat",
        "source_caption": "a table",
        "target_caption": "a cat on a table",
    }
    return EditedSample(**(defaults | fields))


def photographs(count: int) -> list[EditedSample]:
    """Rows of AURORA-Bench that have a target of the source's size; the source stands in as edited image."""
    rows = []
    for row in pq.read_table(AURORA_FILE).to_pylist():
        if row["output"] is None:
            continue
        source, target = (Image.open(io.BytesIO(row[side]["bytes"])).convert("RGB") for side in ("input", "output"))
        if source.size == target.size:
            rows.append(EditedSample(source=source, edited=source, target=target, instruction=row["instruction"]))
    step = len(rows) // count
    return rows[: step * count : step]
