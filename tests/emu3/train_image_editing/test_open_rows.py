"""A dataset by its name: which files it means."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emu3.errors import UserError
from emu3.train_image_editing.image_folder import ImageFolder
from emu3.train_image_editing.image_rows import Columns
from emu3.train_image_editing.open_rows import of_split, open_rows

COLUMNS = Columns(source="image", instruction="text")


def parquet(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [b""] * len(texts), "text": pa.array(texts, pa.string())}), path)


def texts(name: Path, split: str | None = None) -> list[str]:
    rows = open_rows(str(name), "local", split, COLUMNS)
    return [row["text"] for row in rows.read(range(len(rows))) if isinstance(row, dict)]


@pytest.mark.parametrize(
    ("split", "chosen"),
    [
        ("train", ["data/train-00000-of-00002.parquet", "data/train/counting.parquet", "x/Train.parquet"]),
        ("dev", ["data/dev-00000-of-00001.parquet"]),
        ("test", ["test_a.parquet"]),
        ("retrain", ["data/retrain.parquet"]),
        ("rain", []),
    ],
)
def test_a_split_is_a_word_of_the_path(split: str, chosen: list[str]) -> None:
    names = [
        *("data/train-00000-of-00002.parquet", "data/train/counting.parquet", "x/Train.parquet"),
        *("data/dev-00000-of-00001.parquet", "test_a.parquet", "data/retrain.parquet"),
    ]
    assert of_split(names, split) == chosen


def test_files_without_any_split_are_for_training() -> None:
    """As the Hub has it; but never the test files of a dataset that has nothing else."""
    assert of_split(["a.parquet", "b/c.parquet"], "train") == ["a.parquet", "b/c.parquet"]
    assert of_split(["a.parquet"], "test") == []
    assert of_split(["a.parquet", "test.parquet"], "train") == []


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-1.parquet", "a", "b")
    parquet(tmp_path / "data" / "test-0.parquet", "c")
    (tmp_path / "metadata.jsonl").write_text("{}")
    assert texts(tmp_path) == ["c", "a", "b"]
    assert texts(tmp_path, "train") == ["a", "b"]
    assert texts(tmp_path / "data" / "test-0.parquet") == ["c"]


def test_a_folder_with_a_jsonl(tmp_path: Path) -> None:
    for name in ("metadata", "other"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"image": "1.png", "text": name}))
    assert texts(tmp_path) == ["metadata"]
    assert texts(tmp_path, "other") == texts(tmp_path / "other.jsonl") == ["other"]
    assert isinstance(open_rows(str(tmp_path), "local", None, COLUMNS), ImageFolder)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "third.jsonl")
    with pytest.raises(UserError, match=r"has other\.jsonl, third\.jsonl: name one"):
        texts(tmp_path)


def test_what_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no Parquet, JSONL or CSV file"):
        texts(tmp_path)
    with pytest.raises(UserError, match=r"nowhere does not exist.*--source HF"):
        texts(tmp_path / "nowhere")
    parquet(tmp_path / "a-test.parquet")
    with pytest.raises(UserError, match="is empty"):
        texts(tmp_path)
    with pytest.raises(UserError, match=r"no files of split 'dev'; it has a-test\.parquet"):
        texts(tmp_path, "dev")
