"""Files between the evaluation's steps, and the metrics of a run: what is read is whole, what is not says so."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import broken_json, damaged

from baselines.results.predictions import finished_samples
from baselines.results.records import Prediction, read_records, read_settings, write_records
from emu3.errors import UserError
from emu3.report.metrics_file import read_lines

PREDICTION = Prediction(
    id="a",
    benchmark="data",
    split="simple",
    task="colour",
    source_set="",
    instruction="make it red",
    source="batches/0/source.png",
    edited="batches/0/edited.png",
    target=None,
    model="m",
    editor="emu3",
    seed=0,
    seconds=0.5,
    reasoning=None,
)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
LINE = {
    "row": 0,
    "prediction": asdict(PREDICTION),
    "digests": {"batches/0/source.png": EMPTY, "batches/0/edited.png": EMPTY},
}
METRICS = {"step": 3, "loss": 0.5, "reward": None, "seconds": {"train": 1.0}, "judge": {"asks": 4}}


@cache
def predictions() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "predictions.parquet"
        write_records(path, [PREDICTION, PREDICTION], {"name": "m", "seed": 0})
        return path.read_bytes()


@given(st.data())
def test_records_are_read_or_refused(data: st.DataObject) -> None:
    """Guards: an error of Arrow's own for a file that a full disk or a copy has cut off."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "predictions.parquet"
        path.write_bytes(data.draw(damaged(predictions())))
        for reader in (lambda: read_records(path, Prediction), lambda: read_settings(path)):
            try:
                reader()
            except UserError as error:
                assert "\n" not in str(error), str(error)


@given(st.lists(broken_json(LINE) | st.just(json.dumps(LINE).encode()), max_size=4))
def test_lines_of_finished_samples_are_taken_or_left_out(lines: list[bytes]) -> None:
    """Guards: a run that cannot go on because of one line that a crash has left."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "batches/0").mkdir(parents=True)
        for kind in ("source", "edited"):
            (Path(name) / f"batches/0/{kind}.png").touch()
        (Path(name) / "rows-0.jsonl").write_bytes(b"\n".join(lines))
        found = finished_samples(Path(name))
        assert json.dumps(LINE).encode() not in lines or found
        assert all(type(row) is int and isinstance(prediction, Prediction) for row, prediction in found.items())


@given(st.lists(broken_json(METRICS) | st.just(json.dumps(METRICS).encode()), max_size=4))
def test_metrics_are_read_or_refused(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        try:
            found: list[dict[str, Any]] = read_lines(Path(name))
        except UserError as error:
            assert "\n" not in str(error), str(error)
        else:
            assert all(int(line["step"]) is not None for line in found)


def test_nothing_at_all_is_said_too() -> None:
    """The files that no accident leads to: none, and an empty one."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "predictions.parquet"
        path.touch()
        with pytest.raises(UserError):
            read_records(path, Prediction)
        assert finished_samples(Path(name)) == {}
