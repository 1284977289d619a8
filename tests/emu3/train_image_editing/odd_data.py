"""Small tables and folders of images with whatever cells a test wants, and how evaluation refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sft_world import image_bytes

from baselines.benchmarks.samples import Samples, columns_of, find_rows
from baselines.benchmarks.spec import Benchmark
from emu3.errors import UserError
from emu3.train_image_editing.image_rows import IMAGE_CELL

SPEC = Benchmark("data", source="input", instruction="instruction", target="output")
SPEC_COLUMNS = columns_of(SPEC)
LINE = b'{"input": "0.png", "output": "1.png", "instruction": "make it red"}\n'


def cells(count: int, first: int = 0) -> pa.Array:
    return pa.array([{"bytes": image_bytes(first + row), "path": None} for row in range(count)], IMAGE_CELL)


def table(path: Path, **columns: Any) -> Path:
    count = len(next(iter(columns.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"input": cells(count), "output": cells(count, 50)} | columns), path)
    return path


def folder(path: Path, name: str, text: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        (path / f"{number}.png").write_bytes(image_bytes(number))
    (path / name).write_bytes(text)
    return path


def evaluation_fails(data: Path, spec: Benchmark = SPEC) -> str:
    with pytest.raises(UserError) as error:
        Samples(spec, find_rows(spec, data))
    message = str(error.value)
    assert "\n" not in message and str(data) in message
    return message
