"""Whether two folders hold the same run: every file byte by byte, but for what a clock or a port says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TIMES = re.compile(
    "seconds|latenc|_s$|per_second|per_s$|time|memory|busy|wait|hidden|created"  # durations, and what they filled
    "|asks|cache|shared|answered"  # what was asked again after a kill
    "|trainer_state"  # size or digest of a file that holds durations
    "|train_loss"  # the Trainer's mean since the last start
)
"""Keys of JSON whose values two equal runs do not share."""
PAGES = (".html", ".svg", ".log")
"""Show durations among the rest: only their being there is compared."""


def differences(first: Path, second: Path) -> list[str]:
    """Paths that only one of the folders has, and files that differ, one line each; none if the runs are equal."""
    files = [{path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (first, second)]
    found = [f"{name}: only in {first.name}" for name in sorted(files[0] - files[1])]
    found += [f"{name}: only in {second.name}" for name in sorted(files[1] - files[0])]
    for name in sorted(files[0] & files[1]):
        if (first / name).is_file() and not _equal(first / name, second / name):
            found.append(f"{name}: differs")
    return found


def _equal(first: Path, second: Path) -> bool:
    if first.suffix in PAGES or first.read_bytes() == second.read_bytes():
        return True
    match first.suffix:
        case ".json":
            return _steady(json.loads(first.read_text())) == _steady(json.loads(second.read_text()))
        case ".jsonl":
            lines = [[_steady(json.loads(line)) for line in path.read_text().splitlines()] for path in (first, second)]
            texts = [sorted(json.dumps(line, sort_keys=True) for line in part) for part in lines]
            return texts[0] == texts[1]
        case ".parquet":
            tables = [pq.read_table(path) for path in (first, second)]
            rows = [_steady(table.to_pylist()) for table in tables]
            return rows[0] == rows[1] and tables[0].schema.names == tables[1].schema.names
    return False


def _steady(value: Any) -> Any:
    """A JSON value without its times, and with every loopback address alike."""
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if not TIMES.search(key)}
    if isinstance(value, list):
        return [_steady(inner) for inner in value]
    if isinstance(value, str):
        return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1", value)
    return value
