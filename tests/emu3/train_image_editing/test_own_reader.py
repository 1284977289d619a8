"""A dataset reader of somebody's own: the template of docs/templates, by `prepare_data` and by `evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_vision import save_tiny_vision

from baselines import evaluate
from baselines.results.records import Prediction, read_records
from emu3.errors import UserError
from emu3.extensions import _load
from emu3.train_image_editing import prepare_data

READER = f"{Path(__file__).parents[3] / 'docs' / 'templates' / 'reader.py'}:TrioFolder"
COLUMNS = ("--original-image-key", "before", "--edited-image-key", "after", "--edit-instruction-key", "text")


@pytest.fixture
def trios(tmp_path: Path) -> Path:
    folder = tmp_path / "trios"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        for which in ("before", "after"):
            pixels = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}-{which}.png")
        (folder / f"{name}.txt").write_bytes(b"caf\xe9" if name == "b" else f"change {name}".encode())
    return folder


@pytest.fixture
def prepare(trios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    save_tiny_vision(tmp_path / "vision")

    def run(*more: str) -> dict:
        _load.cache_clear()
        options = ("--dataset-name", READER, "--data-files", trios, "--model-path", tmp_path / "vision")
        where = ("--output-path", tmp_path / "data", "--image-area", "384")
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, (*options, *where, *COLUMNS, *more))])
        prepare_data.main()
        return json.loads((tmp_path / "data" / "manifest.json").read_text())

    return run


def test_rows_become_shards(prepare: Callable[..., dict], trios: Path) -> None:
    """A bad row is a row; the source of the reader is in the manifest; changed data are other data."""
    manifest = prepare()
    assert manifest["rows"] == 2 and manifest["rows_with_target"] == 2
    assert manifest["failed"] == [{"id": "1", "why": "text is not UTF-8: byte 0xe9 at 3"}]
    assert len(manifest["data"]["extension"][READER]) == 64
    (trios / "c.txt").write_text("another text")
    with pytest.raises(UserError, match="contents"):
        prepare()


def test_a_split_is_not_for_it(prepare: Callable[..., dict]) -> None:
    with pytest.raises(UserError, match="a reader of your own: it is told --data-files alone"):
        prepare("--split", "train")


def test_it_is_evaluated_as_well(trios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trios / "b.txt").write_text("change b")
    options = ("--editor", "no-edit", "--data", READER, "--data-files", trios, "--image-area", "384")
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, (*options, "--output-dir", tmp_path / "out", *COLUMNS))])
    evaluate.main()
    rows = read_records(tmp_path / "out" / "predictions.parquet", Prediction)
    assert [row.instruction for row in rows] == ["change a", "change b", "change c"]
