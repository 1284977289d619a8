"""Datasets by id and revision, from a Hub on the loopback and from the cache alone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, commit_of, use
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from emu3.errors import UserError
from emu3.train_image_editing.image_rows import Columns
from emu3.train_image_editing.open_rows import open_rows

COLUMNS = Columns(source="image", instruction="text")


def parquet(*texts: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b""] * len(texts), "text": list(texts)}), buffer)
    return buffer.getvalue()


MAIN = {
    "README.md": b"# pairs",
    "data/train-00000-of-00002.parquet": parquet("a", "b"),
    "data/train-00001-of-00002.parquet": parquet("c"),
    "data/test-00000-of-00001.parquet": parquet("d"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    branches = {"main": MAIN, "v1": {"all.parquet": parquet("old")}, "raw": {"images.xyz": b""}}
    with FakeHub(datasets={"org/pairs": branches}) as hub:
        end = use(monkeypatch, hub, tmp_path / "cache")
        disable_progress_bars()
        yield hub
        enable_progress_bars()
        end()


def texts(name: str, split: str | None = None) -> list[str]:
    rows = open_rows(name, "HF", split, COLUMNS)
    return [row["text"] for row in rows.read(range(len(rows))) if isinstance(row, dict)]


def test_a_split_at_a_revision(hub: FakeHub) -> None:
    """And no more of the dataset than that is fetched."""
    assert texts("org/pairs") == ["a", "b", "c"]
    assert not [path for path in hub.asked if "test-0" in path]
    assert texts("org/pairs", "test") == ["d"]
    assert texts("org/pairs@v1") == ["old"]
    assert texts(f"org/pairs@{commit_of('v1')}") == ["old"]


def test_offline_the_cache_answers(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the revision that was asked for, not the last one that was used; and never with half of the files."""
    texts("org/pairs"), texts("org/pairs@v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert texts("org/pairs") == ["a", "b", "c"]
    assert texts("org/pairs@v1") == ["old"]
    assert not hub.asked
    with pytest.raises(UserError, match=r"offline .* org/pairs .*is not whole in the cache"):
        texts("org/pairs", "test")
    with pytest.raises(UserError, match=r"offline .*not whole in the cache"):
        texts("org/pairs@v2")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"offline .*not whole in the cache"):
        texts("org/pairs")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("org/none", None, "org/none is not on the Hub, or private"),
        ("org/pairs@v2", None, "org/pairs has no branch, tag or commit .v2."),
        ("org/pairs", "dev", "has no files of split 'dev'; it has data/test-00000"),
        ("org/pairs@raw", None, "try its automatic conversion, org/pairs@refs/convert/parquet"),
        ("data/pairs.parquet/", None, "is no Hub id.*--source local"),
    ],
)
def test_what_is_not_there_is_named(hub: FakeHub, name: str, split: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        texts(name, split)
    assert "\n" not in str(error.value)


def test_a_gated_dataset_is_one_line(hub: FakeHub) -> None:
    hub.gated.add("org/pairs")
    with pytest.raises(
        UserError, match=r"dataset org/pairs is gated: ask for access at http://\S+/datasets/org/pairs, "
    ):
        texts("org/pairs")
