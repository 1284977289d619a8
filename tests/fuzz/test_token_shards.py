"""Token shards and their manifest: rows as they were written, or one line that says which file is at fault."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mutations import broken_json, damaged, with_another_value

from emu3.errors import UserError
from emu3.train_image_editing.shard_writer import ShardWriter
from emu3.train_image_editing.shards import EditRow, read_rows

SETTINGS = {"vision_sha256": "0" * 64, "image_area": 384, "factor": 8, "data": {"name": "pairs"}}
SHARD, MANIFEST = "shard-00000-of-00001.parquet", "manifest.json"


@cache
def files() -> tuple[bytes, Any]:
    """A shard of four rows, and the manifest."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 16, (4, 2, 2, 3)).astype(np.uint16)
    rows = [
        EditRow(f"row-{index}", source, edited if index % 2 else None, "make it red", {"reasoning_verbose": "why"}, "t")
        for index, (source, edited) in enumerate(grids)
    ]
    with tempfile.TemporaryDirectory() as name:
        writer = ShardWriter(Path(name), SETTINGS, 1)
        writer.write(0, rows, [])
        return (Path(name) / SHARD).read_bytes(), json.loads(json.dumps(writer.finish()))


def read(shard: bytes, manifest: bytes) -> list[EditRow] | None:
    """The rows of a dataset of these two files, None if it was refused."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / SHARD).write_bytes(shard)
        (Path(name) / MANIFEST).write_bytes(manifest)
        try:
            return list(read_rows(name))
        except UserError as error:
            assert "\n" not in str(error), str(error)
            return None


@given(st.data())
def test_a_damaged_shard_is_refused(data: st.DataObject) -> None:
    """Guards: an error of Arrow's own, and rows of a shard whose bytes are not those of the manifest."""
    shard, manifest = files()
    wrong = data.draw(damaged(shard))
    if wrong != shard:
        assert read(wrong, json.dumps(manifest).encode()) is None


@given(st.data())
def test_a_damaged_shard_with_a_fitting_manifest_ends_in_one_line(data: st.DataObject) -> None:
    """The reader's own checks, behind those of size and digest."""
    shard, manifest = files()
    wrong = data.draw(damaged(shard))
    entry = {**manifest["shards"][0], "bytes": len(wrong), "sha256": hashlib.sha256(wrong).hexdigest()}
    read(wrong, json.dumps({**manifest, "shards": [entry]}).encode())


@given(st.data())
def test_another_manifest_is_read_or_refused(data: st.DataObject) -> None:
    shard, manifest = files()
    read(shard, data.draw(broken_json(manifest)))


@given(st.data())
def test_another_manifest_is_finished_or_refused(data: st.DataObject) -> None:
    """A shard's own metadata, as a run that goes on reads them."""
    shard, _ = files()
    settings = data.draw(with_another_value(SETTINGS))
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / SHARD).write_bytes(data.draw(damaged(shard) | st.just(shard)))
        try:
            writer = ShardWriter(Path(name), settings if isinstance(settings, dict) else {}, 1)
            if writer.finished(0):
                writer.finish()
        except UserError as error:
            assert "\n" not in str(error), str(error)
