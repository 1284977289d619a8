"""Shards are whole, equal for equal input, and never mixed with another run's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from emu3.errors import UserError
from emu3.files import sha256_of
from emu3.train_image_editing import shards
from emu3.train_image_editing.shard_writer import FailedRow, ShardWriter
from emu3.train_image_editing.shards import EditRow, check_alike, read_rows

ROWS = [
    EditRow("a", np.arange(6, dtype=np.uint16).reshape(2, 3), np.ones((2, 3), np.uint16), "add a dog", {"k": "why"}),
    EditRow("b", np.full((1, 2), 32767, np.uint16), None, "Größer, bitte", {}, "size"),
    EditRow("c", np.zeros((3, 1), np.uint16), np.full((2, 2), 7, np.uint16), "x", {"p": "1", "q": "2"}, "shape"),
]


def write(folder: Path, area: int = 64) -> ShardWriter:
    writer = ShardWriter(folder, {"image_area": area}, shards=2)
    writer.write(0, ROWS[:2], [FailedRow("z", "empty instruction")])
    writer.write(1, ROWS[2:], [])
    return writer


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    manifest = write(tmp_path).finish()
    assert manifest is not None
    assert (manifest["rows"], manifest["rows_with_target"]) == (3, 2)
    assert manifest["failed"] == [{"id": "z", "why": "empty instruction"}]
    rows = read_rows(tmp_path)
    assert len(rows) == 3
    for index, (row, iterated) in enumerate(zip(ROWS, rows, strict=True)):
        for read in (rows[index], iterated):
            assert (read.id, read.instruction, read.cot, read.task) == (row.id, row.instruction, row.cot, row.task)
            assert read.source.dtype == np.uint16
            np.testing.assert_array_equal(read.source, row.source)
            if row.edited is None:
                assert read.edited is None
            else:
                np.testing.assert_array_equal(read.edited, row.edited)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    """A time stamp or a path inside a shard would make a resumed run differ from an uninterrupted one."""
    for name in ("one", "two"):
        write(tmp_path / name).finish()
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_no_manifest_while_a_shard_is_missing(tmp_path: Path) -> None:
    """A reader must not take the first finished shards for the dataset."""
    writer = write(tmp_path)
    writer.path(1).unlink()
    assert writer.finish() is None
    with pytest.raises(UserError, match="unfinished"):
        read_rows(tmp_path)


def test_shards_of_other_settings_are_refused(tmp_path: Path) -> None:
    """Codes of two image areas in one dataset would train without any error."""
    write(tmp_path, area=64)
    other = ShardWriter(tmp_path, {"image_area": 128}, shards=2)
    with pytest.raises(UserError, match="image_area=64, this one has image_area=128"):
        other.finished(0)
    with pytest.raises(UserError, match="image_area"):
        other.finish()


def test_nested_settings_are_named_by_the_one_that_differs(tmp_path: Path) -> None:
    """Two dicts of twelve keys behind each other tell nobody which one it was."""
    ShardWriter(tmp_path, {"data": {"name": "a", "limit": 3}}, shards=1).write(0, ROWS, [])
    with pytest.raises(UserError, match=r"data\.limit=3, this one has data\.limit=null: "):
        ShardWriter(tmp_path, {"data": {"name": "a"}}, shards=1).finished(0)


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    """And what a run beside this one is writing is not."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [".shard-00000-of-00002.parquet.{}.tmp", ".shard-00001-of-00002.parquet.{}.tmp", ".manifest.json.{}.tmp"]
    for name in names:
        for pid in (gone.pid, os.getppid()):
            (tmp_path / name.format(pid)).write_bytes(b"half")
    write(tmp_path).finish()
    left = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("."))
    assert left == sorted(name.format(os.getppid()) for name in names)


def test_it_is_removed_before_the_shard_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed behind the last step would leave it: no later run writes a shard that is there."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".shard-00000-of-00002.parquet.{gone.pid}.tmp").write_bytes(b"half")
    seen: list[list[str]] = []
    plain_write = shards.pq.write_table

    def write_table(*arguments: Any, **options: Any) -> None:
        plain_write(*arguments, **options)
        seen.append(sorted(path.name for path in tmp_path.iterdir()))

    monkeypatch.setattr(shards.pq, "write_table", write_table)
    write(tmp_path)
    assert len(seen[0]) == 1
    assert re.fullmatch(rf"\.shard-00000-of-00002\.parquet\.\w+-{os.getpid()}\.tmp", seen[0][0])


def test_shards_of_another_cut_are_refused(tmp_path: Path) -> None:
    """Of data that had grown every row was tokenized, for days, before the folder was refused."""
    longer = ShardWriter(tmp_path, {"image_area": 64}, shards=1)
    longer.write(0, ROWS, [])
    with pytest.raises(UserError, match="belongs to another run"):
        write(tmp_path)
    for index in range(2):
        shutil.copy(longer.path(0), tmp_path / f"shard-{index:05d}-of-00002.parquet")
    with pytest.raises(UserError, match="belongs to another run"):
        longer.finish()


def test_damaged_shards_are_noticed(tmp_path: Path) -> None:
    """Truncation changes the size; of flipped bits, one in six changed what was trained on, and nobody noticed."""
    writer = write(tmp_path)
    writer.finish()
    whole = writer.path(0).read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        writer.path(0).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"shard-00000.* another sha256 than manifest\.json says, it was changed"):
            read_rows(tmp_path)
    writer.path(0).write_bytes(whole[:-1])
    with pytest.raises(UserError, match="another size"):
        read_rows(tmp_path)


def test_damage_after_the_first_reading_is_noticed(tmp_path: Path) -> None:
    """Guards a cache that answers for a file that has become another."""
    writer = write(tmp_path)
    writer.finish()
    before = [row.instruction for row in read_rows(tmp_path)]
    whole = writer.path(0).read_bytes()
    writer.path(0).write_bytes(whole[:-9] + b"?" + whole[-8:])
    with pytest.raises(UserError, match="another sha256"):
        read_rows(tmp_path)
    writer.path(0).write_bytes(whole)
    assert [row.instruction for row in read_rows(tmp_path)] == before


def test_rows_are_mapped_and_not_held(tmp_path: Path) -> None:
    """A million pairs took 32 GB of each rank's memory."""
    grid = np.zeros((64, 64), np.uint16)
    writer = ShardWriter(tmp_path, {}, shards=1)
    writer.write(0, [EditRow(str(number), grid, grid, "go") for number in range(200)], [])
    writer.finish()
    before = pa.total_allocated_bytes()
    rows = read_rows(tmp_path)
    assert rows[199].source.shape == (64, 64)
    assert pa.total_allocated_bytes() - before < 200 * 2 * grid.nbytes / 50


def test_shards_are_unpacked_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards ranks that each read and check all of a dataset. What another process removes is made again."""
    monkeypatch.setenv("EARL_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "data").finish()
    checked: list[Path] = []
    check = shards._checked
    monkeypatch.setattr(shards, "_checked", lambda path, digest: checked.append(path) or check(path, digest))
    for _ in range(2):
        assert len(read_rows(tmp_path / "data")) == len(ROWS)
    assert len(checked) == 2
    shutil.rmtree(tmp_path / "cache")
    assert len(read_rows(tmp_path / "data")) == len(ROWS) and len(checked) == 4


def test_a_cache_without_room_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data").finish()
    (tmp_path / "file").touch()
    monkeypatch.setenv("EARL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"data cannot be unpacked into .*: .*; set EARL_CACHE to a folder"):
        read_rows(tmp_path / "data")


def test_a_manifest_leads_nowhere_else(tmp_path: Path) -> None:
    """Its digests name files of the cache."""
    write(tmp_path).finish()
    text = (tmp_path / "manifest.json").read_text()
    digest = json.loads(text)["shards"][0]["sha256"]
    (tmp_path / "manifest.json").write_text(text.replace(digest, f"../../{digest}"))
    with pytest.raises(UserError, match="lists no shards"):
        read_rows(tmp_path)


def test_a_dataset_without_one_usable_row_is_an_error(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, {}, shards=1)
    writer.write(0, [], [FailedRow("z", "unreadable image")])
    with pytest.raises(UserError, match="unreadable image"):
        writer.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"shards": []}', '{"shards": [{"file": "a"}]}'])
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, manifest: str) -> None:
    """Many programs write a manifest.json."""
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"manifest\.json (lists no shards|is not what this command writes)"):
        read_rows(tmp_path)


def test_datasets_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    """Codes of two tokenizers in one run train without any error."""
    for name, area in (("one", 64), ("two", 64), ("other", 128)):
        write(tmp_path / name, area).finish()
    one, two, other = (read_rows(tmp_path / name) for name in ("one", "two", "other"))
    check_alike([one, two], {"image_area": 64})
    with pytest.raises(UserError, match=r"other has image_area 128, .*one has 64"):
        check_alike([one, other], {})
    with pytest.raises(UserError, match="one has image_area 64, expected 128"):
        check_alike([one], {"image_area": 128})


def test_text_that_is_not_utf8_in_a_shard_of_another_program(tmp_path: Path) -> None:
    """The manifest vouches for the bytes, and the row was read as the Trainer asked for it: a traceback in mid-run."""
    manifest = write(tmp_path).finish()
    assert manifest is not None
    path = tmp_path / manifest["shards"][0]["file"]
    table = shards.pq.read_table(path)
    latin1 = pa.array([b"caf\xe9"] * len(table), pa.binary()).view(pa.string())
    shards.pq.write_table(table.set_column(table.schema.get_field_index("instruction"), "instruction", latin1), path)
    entry = {**manifest["shards"][0], "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "shards": [entry, *manifest["shards"][1:]]}))
    with pytest.raises(UserError, match=f"{path.name} is not a Parquet file, or is damaged: .*UTF8"):
        read_rows(tmp_path)
