"""Rows of datasets on the Hub that are not simply all Parquet files of a split: the first few, a configuration, other
formats. What a server on the loopback sent is counted."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, use
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from sft_world import image_bytes

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import IMAGE_CELL, BadRow, Columns, read_row
from emu3.train_image_editing.open_rows import open_rows
from emu3.train_image_editing.row_files import RowSource

COLUMNS = Columns(source="image", instruction="text")
CELL = 20_000  # bytes of a stored image


def shard(number: int, rows: int = 400) -> bytes:
    """A file with row groups of 50; those of image datasets on the Hub have 100."""
    noise = np.random.default_rng(number)
    cells = [{"bytes": noise.bytes(CELL), "path": None} for _ in range(rows)]
    buffer = io.BytesIO()
    table = {"image": pa.array(cells, IMAGE_CELL), "text": [f"{number}-{row}" for row in range(rows)], "more": cells}
    pq.write_table(pa.table(table), buffer, row_group_size=50)
    return buffer.getvalue()


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CARD = b"""---
configs:
- config_name: old
  data_files:
  - {split: train, path: old/a*}
  - {split: test, path: old/b*}
---
"""


@pytest.fixture(scope="module")
def big() -> dict[str, bytes]:
    return {"README.md": b""} | {f"data/train-{number:05d}-of-00004.parquet": shard(number) for number in range(4)}


@pytest.fixture
def hub(big: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    cards = {"README.md": CARD} | {f"old/{name}.parquet": shard(number, 3) for number, name in enumerate(("a", "b"))}
    folder = {
        "README.md": b"",
        "train/metadata.jsonl": lines(*({"file_name": f"{one}.png", "text": one} for one in ("one", "two"))),
        "train/one.png": image_bytes(1),
        "train/two.png": image_bytes(2),
    }
    others = {
        "README.md": b"",
        "rows.jsonl": lines({"image": {"bytes": None, "path": "/etc/hostname"}, "text": "steal"}),
    }
    served = {"org/big": big, "org/cards": cards, "org/folder": folder, "org/json": others}
    served["org/tar"] = {"README.md": b"", "train.tar": b""}
    with FakeHub(datasets={name: {"main": files} for name, files in served.items()}) as hub:
        end = use(monkeypatch, hub, tmp_path / "cache")
        disable_progress_bars()
        yield hub
        enable_progress_bars()
        end()


def texts(rows: RowSource) -> list[str]:
    return [row["text"] for row in rows.read(range(len(rows))) if not isinstance(row, BadRow)]


def test_the_first_rows_cost_what_they_take(hub: FakeHub, big: dict[str, bytes]) -> None:
    """Guards `--limit 100` of a set of 571 files, which fetched all of them."""
    rows = open_rows("org/big", "HF", None, COLUMNS, limit=30)
    assert texts(rows) == [f"0-{row}" for row in range(30)]
    assert 30 * CELL < hub.sent < 60 * CELL < sum(map(len, big.values())) / 20
    assert not [path for path in hub.asked if "00001-of" in path]


def test_the_first_rows_reach_into_the_next_file(hub: FakeHub) -> None:
    rows = open_rows("org/big", "HF", "train", COLUMNS, limit=402)
    assert texts(rows)[399:] == ["0-399", "1-0", "1-1"]


def test_a_second_call_asks_for_nothing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """And has the same digest, so that a run goes on; offline too."""
    first = open_rows("org/big", "HF", None, COLUMNS, limit=5)
    folder = open_rows("org/folder", "HF", None, COLUMNS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    again = open_rows("org/big", "HF", None, COLUMNS, limit=5)
    assert again.contents == first.contents and texts(again) == texts(first)
    assert open_rows("org/folder", "HF", None, COLUMNS).contents == folder.contents
    assert not hub.asked
    with pytest.raises(UserError, match=r"offline .* these rows are of dataset org/big not in the cache"):
        open_rows("org/big", "HF", None, COLUMNS, limit=6)


def test_a_configuration_has_its_own_files(hub: FakeHub) -> None:
    rows = open_rows("org/cards", "HF", "test", COLUMNS, config="old")
    assert texts(rows) == ["1-0", "1-1", "1-2"]
    assert rows.origin.startswith("org/cards@") and hub.fetched.count("old/b.parquet") == 1
    assert "old/a.parquet" not in hub.fetched
    with pytest.raises(UserError, match="has no split 'dev'; it has train, test"):
        open_rows("org/cards", "HF", "dev", COLUMNS, config="old")
    with pytest.raises(UserError, match=r"org/cards: .*'new' not found.*--config-name"):
        open_rows("org/cards", "HF", None, COLUMNS, config="new")


def test_an_image_folder_is_streamed(hub: FakeHub) -> None:
    """By the rules of `datasets`: metadata.jsonl names the images."""
    rows = open_rows("org/folder", "HF", None, COLUMNS)
    found = [read_row(row, COLUMNS, 0) for row in rows.read(range(len(rows))) if not isinstance(row, BadRow)]
    assert [row.instruction for row in found] == ["one", "two"]
    plain = read_row({"image": image_bytes(2), "text": "x"}, COLUMNS, 0)
    assert found[1].source_digest == plain.source_digest


def test_patterns_choose_files(hub: FakeHub) -> None:
    rows = open_rows("org/big", "HF", None, COLUMNS, data_files=["data/*-00003-of-*"], limit=2)
    assert texts(rows) == ["3-0", "3-1"]
    with pytest.raises(UserError, match=r"has no files data/nine\*; it has data/train-00000"):
        open_rows("org/big", "HF", None, COLUMNS, data_files=["data/nine*"])


def test_a_missing_column_is_named_with_those_that_are_there(hub: FakeHub) -> None:
    with pytest.raises(UserError, match="has no column 'words'; it has image, text, more"):
        open_rows("org/big", "HF", None, Columns(source="image", instruction="words"), limit=1)


def test_a_path_of_another_place_is_not_read(hub: FakeHub) -> None:
    """A dataset must not choose which files of this machine are tokenized."""
    [row] = open_rows("org/json", "HF", None, COLUMNS).read([0])
    assert not isinstance(row, BadRow)
    with pytest.raises(BadRow, match="image holds the path '/etc/hostname' without the image's bytes"):
        read_row(row, COLUMNS, 0)


def test_a_format_that_may_run_something_is_refused(hub: FakeHub) -> None:
    """Guards against pickles: `datasets` decodes those in tar files, among thirty formats that nobody asked for."""
    with pytest.raises(UserError, match="org/tar is in the form webdataset; read are parquet, arrow, json, csv, image"):
        open_rows("org/tar", "HF", None, COLUMNS)
