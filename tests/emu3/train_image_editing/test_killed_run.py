"""A run that is killed at any moment goes on as if nothing had happened.

The command is killed with SIGKILL, from outside, in a process of its own; a fork server imports what it needs once.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sft_world import image_bytes, save_vision

from emu3.errors import run_main
from emu3.train_image_editing import prepare_data
from emu3.train_image_editing.verify import verify

KILLS = 20
ROWS = 100


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def entries(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_twenty_kills_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a shard under its name, a shard tokenized twice into other bytes, temporary files for ever."""
    images = [{"bytes": image_bytes(seed), "path": None} for seed in range(20)]
    rows = [{"a": images[i // 3 % 20], "b": images[i % 20], "text": f"edit {i}"} for i in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=30)
    save_vision(tmp_path / "vision")
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    flags = [
        "--dataset-name", str(tmp_path / "pairs.parquet"), "--source", "local", "--model-path",
        str(tmp_path / "vision"), "--original-image-key", "a", "--edited-image", "b", "--edit-instruction", "text",
        "--image-area", "1024", "--shard-rows", "1", "--output-path",
    ]  # fmt: skip
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", prepare_data.__name__])

    def start(folder: Path) -> multiprocessing.context.ForkServerProcess:
        monkeypatch.setattr(sys, "argv", ["prepare_data", *flags, str(folder)])  # a new process gets what is here
        process = context.Process(target=run_main, args=(prepare_data.main,))
        process.start()
        return process

    first = start(undisturbed)
    first.join()
    assert first.exitcode == 0
    generator = np.random.default_rng(0)
    kills = 0
    while kills < KILLS:
        before = entries(killed)
        process = start(killed)
        while entries(killed) == before and process.is_alive():
            time.sleep(0.001)
        process.join(timeout=generator.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode == -signal.SIGKILL
        if (killed / "manifest.json").exists():  # on a fast machine it may end before the twentieth kill
            assert files(killed) == files(undisturbed)
            killed = tmp_path / f"killed-{kills}"
    last = start(killed)
    last.join()
    assert last.exitcode == 0
    assert list(files(killed)) == list(files(undisturbed))
    assert files(killed) == files(undisturbed)
    assert f"{ROWS} rows" in verify(killed)
