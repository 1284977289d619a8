"""scripts/tokenize.sh with several workers, as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sft_world import image_bytes, save_vision

from emu3.train_image_editing.prepare_data import PrepareArguments, prepare

SCRIPT = Path(__file__).parents[3] / "scripts" / "tokenize.sh"


def tokenize(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "WORKERS": "2",
    }
    return subprocess.run(["bash", str(SCRIPT), *flags], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_workers_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or say in one line why not, and end with code 2: torchrun would print its own report and end with 1."""
    rows = [{"a": image_bytes(i // 2), "b": image_bytes(50 + i), "text": f"edit {i}"} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    save_vision(tmp_path / "vision")
    flags = [
        "--dataset-name", "pairs.parquet", "--source", "local", "--output-path", "two", "--model-path", "vision",
        "--original-image-key", "a", "--edited-image", "b", "--edit-instruction", "text", "--shard-rows", "2",
    ]  # fmt: skip
    wrong = tokenize(tmp_path, *flags, "--image-area", "10")
    first = wrong.stderr.splitlines()[0]
    assert (wrong.returncode, first) == (2, "error: --image-area 10 is less than one code of 8x8")
    assert "Traceback" not in wrong.stderr
    done = tokenize(tmp_path, *flags, "--image-area", "1024")
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(":")[0] for line in done.stdout.splitlines()) == ["worker 0", "worker 1"]
    assert "two is complete: 9 rows, 9 with a target, 0 failed" in done.stdout
    assert "images/s" in done.stdout

    monkeypatch.chdir(tmp_path)
    arguments = PrepareArguments(
        dataset_name="pairs.parquet", source="local", output_path="one", model_path="vision", shard_rows=2,
        original_image_key="a", edited_image_key="b", edit_instruction_key="text", image_area=1024,
    )  # fmt: skip
    prepare(arguments)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
