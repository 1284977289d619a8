"""The two files between the steps: predictions and scores, one row per sample, as Parquet.

Paths in a predictions file are relative to its folder, so that a run folder can be moved. The settings that led to a
file stand in its schema metadata: a number can be traced, and a file is never continued under other settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.files import whole_file

PREDICTIONS_FILE = "predictions.parquet"
SCORES_FILE = "scores.parquet"

SCORED, UNPARSABLE, UNAVAILABLE = "score", "unparsable", "unavailable"
_SETTINGS = b"settings"


@dataclass(frozen=True)
class Prediction:
    """One edited picture. `source` is the picture as the judge sees it; `target` is None where the data has none.

    `model` is the name of the row in the tables, `editor` the kind of editor, `seconds` the sample's share of the
    time that its batch took.
    """

    id: str
    benchmark: str
    split: str
    task: str
    instruction: str
    source: str
    edited: str
    target: str | None
    model: str
    editor: str
    seed: int
    seconds: float


@dataclass(frozen=True)
class ScoredSample:
    """One judged prediction. `value` is null unless `status` is "score": a failure is never a number.

    `detail` is the judge's raw answer when it was unparsable, the reason when the judge was unavailable, else null.
    """

    id: str
    benchmark: str
    split: str
    task: str
    model: str
    editor: str
    status: str
    value: float | None
    parts: dict[str, float]
    detail: str | None


_TEXT, _NUMBER = pa.string(), pa.float64()
_SCHEMAS = {
    Prediction: pa.schema(
        [(name, _TEXT) for name in ("id", "benchmark", "split", "task", "instruction", "source", "edited", "target")]
        + [("model", _TEXT), ("editor", _TEXT), ("seed", pa.int64()), ("seconds", _NUMBER)]
    ),
    ScoredSample: pa.schema(
        [(name, _TEXT) for name in ("id", "benchmark", "split", "task", "model", "editor", "status")]
        + [("value", _NUMBER), ("parts", pa.map_(_TEXT, _NUMBER)), ("detail", _TEXT)]
    ),
}

Record = TypeVar("Record", Prediction, ScoredSample)


def write_records(path: Path, records: Sequence[Prediction] | Sequence[ScoredSample], settings: dict[str, Any]) -> None:
    """Write one kind of record, whole or not at all; the same records and settings give the same bytes."""
    schema = _SCHEMAS[type(records[0])].with_metadata({_SETTINGS: json.dumps(settings, sort_keys=True).encode()})
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(record) for record in records], schema=schema), temporary)


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read a file of `kind`. Raises `UserError` if it is missing or holds something else."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from None
    names = [field.name for field in fields(kind)]
    if missing := [name for name in names if name not in table.column_names]:
        raise UserError(f"{path} is no file of {kind.__name__} rows: it lacks {', '.join(missing)}")
    rows = table.select(names).to_pylist(maps_as_pydicts="strict")
    return [kind(**row) for row in rows]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `write_records` put beside the rows; empty for a file from elsewhere."""
    return json.loads((pq.read_schema(path).metadata or {}).get(_SETTINGS, b"{}"))


def refuse_other_settings(where: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise `UserError` naming the first setting in which a run that is already there differs from this one."""
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{where} already holds a run with {key}={found.get(key)!r}, this one has {key}={wanted.get(key)!r}: "
                "choose another folder or delete that one"
            )
