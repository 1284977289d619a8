"""Files that are whole or absent, and what a process that was killed in the middle leaves of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emu3.errors import UserError
from emu3.files import UNTOUCHED, read_json, reading_parquet, remove_leftovers, whole_file, whole_folder


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_goes_with_the_next_try(tmp_path: Path, gone: int) -> None:
    """Guards a disk that fills with halves of checkpoints and parts: each kill left one for ever."""
    for pid in (gone, os.getppid()):
        (tmp_path / f".a[1].json.{pid}.tmp").write_text("half")
        (tmp_path / f".model.{pid}.tmp").mkdir()
        (tmp_path / f".model.{pid}.tmp/weights").write_text("half")
    (tmp_path / f".other.json.{gone}.tmp").write_text("of somebody who comes back to it")
    with whole_file(tmp_path / "a[1].json") as temporary:
        temporary.write_text("{}")
    with whole_folder(tmp_path / "model"):
        pass
    kept = [f".a[1].json.{os.getppid()}.tmp", f".model.{os.getppid()}.tmp", f".other.json.{gone}.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "a[1].json", "model"])


def test_files_of_others_are_no_leftovers(tmp_path: Path, gone: int) -> None:
    """Whatever began with a dot and ended in .tmp or .old was removed: notes and copies of a person too."""
    others = [".notes.old", ".model.mine.tmp", ".a.json.v2.old", "model.old", ".config.tmp"]
    for name in [*others, f".model.{gone}.tmp", f".step_000001.host-{gone}.old"]:
        (tmp_path / name).touch()
    with whole_folder(tmp_path / "model"):
        pass
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "model"])


def test_another_machines_files_are_left_to_it_for_a_time(tmp_path: Path, gone: int) -> None:
    """Several workers of one command share a folder, each on its machine: a process number of another machine was
    looked up on this one, and what a live worker was writing was removed."""
    old = time.time() - 2 * UNTOUCHED
    for name, age in (("live", time.time()), ("dead", old)):
        (tmp_path / f".manifest.json.{name}-{gone}.tmp").write_text("half")
        os.utime(tmp_path / f".manifest.json.{name}-{gone}.tmp", (age, age))
        weights = tmp_path / f".model.{name}-{gone}.tmp/weights"
        weights.parent.mkdir()
        weights.write_text("half")
        os.utime(weights, (age, age))
        os.utime(weights.parent, (old, old))
    with whole_file(tmp_path / "manifest.json") as temporary:
        temporary.write_text("{}")
        assert temporary.name.removesuffix(".tmp").endswith(f"-{os.getpid()}")
    with whole_folder(tmp_path / "model"):
        pass
    kept = [f".manifest.json.live-{gone}.tmp", f".model.live-{gone}.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "manifest.json", "model"])


def test_a_folder_within_a_folder_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """Killed in the inner one, a call left a folder that no later one knew."""
    with whole_folder(tmp_path / "export") as outer:
        with whole_folder(outer) as inner:
            (inner / "weights").write_text("w")
            assert [path.name for path in tmp_path.iterdir()] == [outer.name]
        (outer / "card").write_text("c")
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["card", "weights"]


def test_the_last_whole_folder_is_not_taken_for_a_leftover(tmp_path: Path, gone: int) -> None:
    """A kill between the two renames leaves the former folder under its temporary name, and nothing else."""
    (tmp_path / f".model.{gone}.old").mkdir()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model"):
        raise RuntimeError("the disk is full again")
    assert (tmp_path / f".model.{gone}.old").is_dir()
    for _ in range(2):
        with whole_folder(tmp_path / "model"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 5000, b"1" * 5000, b""])
def test_what_is_no_json_is_one_line(tmp_path: Path, text: bytes) -> None:
    """Guards a traceback of the decoder: for 5,000 brackets a RecursionError, for 5,000 digits a ValueError."""
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=r"a\.json is not JSON: .+") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    """Arrow has a dozen classes for it, OSError among them, and messages of several lines."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    with (
        pytest.raises(UserError, match=r"a\.parquet is not a Parquet file, or is damaged") as caught,
        reading_parquet(path),
    ):
        pq.read_table(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist"), reading_parquet(tmp_path / "b.parquet"):
        pq.read_table(tmp_path / "b.parquet")
    with pytest.raises(PermissionError), reading_parquet(path):
        raise PermissionError(13, "not yours", str(path))
