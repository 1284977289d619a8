"""What says that a folder is whole has to look at all of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import sft_world

from emu3.errors import UserError
from emu3.train_image_editing import verify


def test_whole_folders_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [sft_world.data(tmp_path / name, sft_world.edits(count)) for name, count in (("one", 3), ("two", 5))]
    monkeypatch.setattr(sys, "argv", ["verify", *map(str, folders)])
    verify.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["3 rows", "5 rows"]


def test_a_changed_byte_or_a_changed_count_is_found(tmp_path: Path) -> None:
    folder = sft_world.data(tmp_path / "data", sft_world.edits(3))
    [shard] = folder.glob("*.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(UserError, match="another sha256"):
        verify.verify(folder)
    shard.write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"rows_with_target": 2}))
    with pytest.raises(UserError, match=r"has 3 rows_with_target, manifest\.json says 2"):
        verify.verify(folder)
