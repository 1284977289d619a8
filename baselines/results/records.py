"""The two files between the steps: predictions and scores, one row per sample, as Parquet.

Paths in a predictions file are relative to its folder, so that a run folder can be moved. The settings that led to a
file stand in its schema metadata: a number can be traced, and a file is never continued under other settings. A scores
file grows by metrics (`ScoreFile`), and its numbers never mix two ways of making them.

A path says little next week, so data and weights are told there by the SHA-256 of their contents (`fingerprint`). In
huggingface_hub's cache a large file's name is that digest already, so a model from the Hub and a copy of it in a folder
have one fingerprint, and the former costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.files import reading_parquet, sha256_of, whole_file
from emu3.run_folder import check_version, refuse_differences

PREDICTIONS_FILE = "predictions.parquet"
SCORES_FILE = "scores.parquet"

SCORED, UNPARSABLE, UNAVAILABLE, MISSING = "score", "unparsable", "unavailable", "missing"
VIESCORE = "viescore"
NO_EDIT, GROUND_TRUTH = "no-edit", "ground-truth"
"""Kinds of editors that compete with nobody."""
WHOLE_SET = "*"
UNCROPPED = "source_uncropped"
_SETTINGS, _VERSION = b"settings", b"version"
VERSION = 2
"""Of both files; 1 had no version. A file of a newer one is refused, since what it says may mean something else."""

LIBRARIES = ("numpy", "pillow", "torch", "transformers", "diffusers", "vllm")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Prediction:
    """One edited image. `source` is the image as the judge sees it; `target` is None where the data has none.

    `source_set` is the part of a benchmark that a row comes from, "" where there are no parts. `model` is the name of
    the row in the tables, `editor` the kind of editor, `seconds` the sample's share of the time that its batch took.
    `reasoning` is the chain of thought that the editor wrote before the image, or None, and `reasoning_cut` whether it
    ended because there were no more tokens for it. What the data has of captions
    of the image before and after the edit, and of a mask (white where the edit belongs), stands beside it.
    `source_uncropped` is the source before it was cropped to whole cells, None where nothing had to be. `source_id`
    says which image is edited, "" where that is not known: several edits of one image have one (`Sample`).
    """

    id: str
    benchmark: str
    split: str
    task: str
    source_set: str
    instruction: str
    source: str
    edited: str
    target: str | None
    model: str
    editor: str
    seed: int
    seconds: float
    reasoning: str | None
    source_caption: str | None = None
    target_caption: str | None = None
    mask: str | None = None
    source_uncropped: str | None = None
    source_id: str = ""
    reasoning_cut: bool | None = None

    @property
    def images(self) -> tuple[str | None, ...]:
        """The paths of all its images."""
        return self.source, self.edited, self.target, self.mask, self.source_uncropped


@dataclass(frozen=True)
class ScoredSample:
    """One prediction under one metric. `value` is null unless `status` is "score": a failure is never a number.

    `metric` is VIESCORE or the name of another metric, `parts` holds the numbers that the value is made of. `answers`
    keeps what the judge said, by question; it is empty for other metrics. `detail` says why there is no value, else
    null. A score of a whole benchmark, such as FID, is one row with the id WHOLE_SET, its sample count as `parts["n"]`.
    `source_id` is the prediction's. `run` is not in the file: it tells several runs of one model apart, once their
    files are read together (`baselines.tables.conditions.read_scores`).
    """

    id: str
    benchmark: str
    split: str
    task: str
    source_set: str
    model: str
    editor: str
    metric: str
    status: str
    value: float | None
    parts: dict[str, float]
    answers: dict[str, str]
    detail: str | None
    source_id: str = ""
    run: str = ""


def scored_row(
    row: Prediction,
    metric: str,
    status: str,
    value: float | None,
    *,
    parts: dict[str, float] | None = None,
    answers: dict[str, str] | None = None,
    detail: str | None = None,
) -> ScoredSample:
    """The row of a scores file about the prediction `row`."""
    names = ("id", "benchmark", "split", "task", "source_set", "model", "editor", "source_id")
    return ScoredSample(
        **{name: getattr(row, name) for name in names},
        metric=metric,
        status=status,
        value=value,
        parts=parts or {},
        answers=answers or {},
        detail=detail,
    )


_TEXT, _NUMBER = pa.string(), pa.float64()
_SCHEMAS = {
    Prediction: pa.schema(
        [(name, _TEXT) for name in ("id", "benchmark", "split", "task", "source_set", "instruction")]
        + [(name, _TEXT) for name in ("source", "edited", "target", "model", "editor")]
        + [("seed", pa.int64()), ("seconds", _NUMBER)]
        + [(name, _TEXT) for name in ("reasoning", "source_caption", "target_caption", "mask", UNCROPPED, "source_id")]
        + [("reasoning_cut", pa.bool_())]
    ),
    ScoredSample: pa.schema(
        [(name, _TEXT) for name in ("id", "benchmark", "split", "task", "source_set")]
        + [(name, _TEXT) for name in ("model", "editor", "metric", "status")]
        + [("value", _NUMBER), ("parts", pa.map_(_TEXT, _NUMBER)), ("answers", pa.map_(_TEXT, _TEXT))]
        + [("detail", _TEXT), ("source_id", _TEXT)]
    ),
}

Record = TypeVar("Record", Prediction, ScoredSample)

# Columns that came later, and what they are in a file that was written before.
_LATER: dict[str, Any] = {"source_set": "", "reasoning": None, "metric": VIESCORE, "answers": {}}
_LATER |= {"source_id": "", "run": ""}
_LATER |= dict.fromkeys(("source_caption", "target_caption", "mask", UNCROPPED, "reasoning_cut"))


def write_records(path: Path, records: Sequence[Prediction] | Sequence[ScoredSample], settings: dict[str, Any]) -> None:
    """Write one kind of record, whole or not at all; the same records and settings give the same bytes."""
    metadata = {_SETTINGS: json.dumps(settings, sort_keys=True).encode(), _VERSION: str(VERSION).encode()}
    schema = _SCHEMAS[type(records[0])].with_metadata(metadata)
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(record) for record in records], schema=schema), temporary)


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read a file of `kind`. Raises `UserError` if it is missing, holds something else, or is of a newer version."""
    if not path.is_file():
        fault = "is a folder, expected a Parquet file in it" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {fault}")
    _metadata(path)
    with reading_parquet(path):
        table = pq.read_table(path)
        found = table.column_names
    names = [field.name for field in fields(kind)]
    if missing := [name for name in names if name not in found and name not in _LATER]:
        raise UserError(f"{path} is no file of {kind.__name__} rows: it lacks {', '.join(missing)}")
    later = {name: _LATER[name] for name in names if name not in found}
    with reading_parquet(path):
        rows = table.select([name for name in names if name not in later]).to_pylist(maps_as_pydicts="strict")
    records = [kind(**row, **later) for row in rows]
    for record in records:
        if isinstance(record, Prediction) and (outside := outside_of_folder(record)) is not None:
            raise UserError(f"{path}, sample {record.id!r}: its image {outside!r} lies outside of the file's folder")
    return records


def outside_of_folder(row: Prediction) -> str | None:
    """The first of the row's paths that does not lead into the folder of its file, None if all do. A file from
    elsewhere could name anything that this machine can read, for a judge or a page to be shown."""
    for name in row.images:
        if name is not None and (
            not name
            or "\0" in name
            or PureWindowsPath(name).anchor
            or Path(name).is_absolute()
            or ".." in PureWindowsPath(name).parts
        ):
            return name
    return None


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `write_records` put beside the rows; empty for a file from elsewhere. Raises `UserError` for
    a file of a newer version."""
    try:
        return json.loads(_metadata(path).get(_SETTINGS, b"{}"))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: the settings in it are not JSON") from None


def _metadata(path: Path) -> dict[bytes, bytes]:
    with reading_parquet(path):
        metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    version = metadata.get(_VERSION, b"1")
    check_version(path, {"version": int(version) if version.isdigit() else None}, VERSION)
    return metadata


REMEDY = "choose another folder or delete that one"


class ScoreFile:
    """The scores file at `path` by metric, written anew after each: what was measured is not lost to the next one.

    Raises `UserError` if it is about other predictions than `settings` says.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.by_metric: dict[str, list[ScoredSample]] = {}
        if path.exists():
            self.settings = read_settings(path)
            refuse_differences(path, {key: self.settings.get(key) for key in settings}, settings, REMEDY)
            for score in read_records(path, ScoredSample):
                self.by_metric.setdefault(score.metric, []).append(score)

    def check(self, made: dict[str, Any]) -> None:
        """Raise `UserError` if the file holds scores that were made in another way than `made` says."""
        if self.settings.keys() & made.keys():
            refuse_differences(self.path, {key: self.settings.get(key) for key in made}, made, REMEDY)

    def put(self, name: str, rows: list[ScoredSample], made: dict[str, Any]) -> None:
        """Write the rows of a metric; its place in the file does not depend on what was scored first."""
        self.by_metric[name] = rows
        self.settings = self.settings | made
        order = sorted(self.by_metric, key=lambda metric: (metric != VIESCORE, metric))
        write_records(self.path, [row for metric in order for row in self.by_metric[metric]], self.settings)


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents."""
    return hashlib.sha256("".join(f"{file.name} {_digest(file)}\n" for file in files).encode()).hexdigest()


def identity(name: str, folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """What the model `name` in `folder` is: the fingerprint of its files (patterns as `Path.glob` takes them) and, of
    one from the Hub, its id and commit. Raises `UserError` if there are no such files."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if not files:
        raise UserError(f"{folder} is no model's folder: it holds no {' and no '.join(patterns)}")
    found = {"files": fingerprint(files)}
    # huggingface_hub's cache has a folder per commit.
    return found | ({"hub": name, "commit": folder.name} if folder.parent.name == "snapshots" else {})


def versions() -> dict[str, str]:
    """Version of Python and of `LIBRARIES`, those that are installed."""
    # Imported here: it brings the Hub's client along, of which tables and reports need nothing.
    from emu3.checkpoint_facts import installed_versions

    return {"python": platform.python_version(), **installed_versions(LIBRARIES)}


def _digest(file: Path) -> str:
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else sha256_of(file)
