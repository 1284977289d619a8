"""Datasets as published: `.pth` files that torch.save writes, and the list beside them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIDE = 4
AREA = (8 * SIDE) ** 2


def record(index: int, side: int = SIDE, **changes: Any) -> dict[str, Any]:
    """An edit with random codes; every second one has a chain of thought."""
    draw = np.random.default_rng(index)
    return {
        "edit_id": f"swap_{index}.pth",
        "original_image": draw.integers(0, 32_768, (side, side)),
        "edited_image": draw.integers(0, 32_768, (side, side)),
        "CoT": {"reasoning_verbose": f"weil Größe {index}"} if index % 2 else {},
        "instruction": f"swap the {index} 漢字",
        **changes,
    }


def saved(value: Any) -> bytes:
    """What torch.save makes of `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def around(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save's shape around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def pickled_by_torch(value: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved(value))) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def publish(folder: Path, files: Mapping[str, bytes], subfolder: str = "feature", **changes: Any) -> Path:
    """Write `files` and their list; returns OUT. The prefix is a path on somebody else's disk."""
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    (folder / "list").mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / subfolder / name).write_bytes(data)
    listed = {"prefix": "/network/scratch/somebody/OUT/feature", "path_list": list(files), **changes}
    (folder / "list" / "tokenized_datalist.json").write_text(json.dumps(listed))
    return folder
