"""Finished samples of a run that is under way: one JSON line each, one file per process.

A line is appended after the sample's pictures are written, and holds their digests: a run that goes on after a crash
takes a sample for finished only if its line is whole and its pictures are what the line says. Pictures are not synced
one by one, which would cost more than writing them.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from baselines.results.records import Prediction


class SampleLog:
    """Appends to OUT/rows-N.jsonl, made at the first line; N is the number of the process."""

    def __init__(self, output_dir: Path, number: int) -> None:
        self._folder = output_dir
        self._path = output_dir / f"rows-{number}.jsonl"
        self._file: IO[bytes] | None = None

    def append(self, row: int, prediction: Prediction, candidates: tuple[float | None, ...]) -> None:
        """Note that sample `row` is done. candidates: scores of what its picture was chosen among."""
        line = {
            "row": row,
            "prediction": asdict(prediction),
            "digests": {name: _digest(self._folder / name) for name in _pictures(prediction)},
            **({"candidates": candidates} if candidates else {}),
        }
        if self._file is None:
            # Whatever a crash left of a last line is closed, so that the next one stands by itself.
            torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
            self._file = self._path.open("ab", buffering=0)
            if torn and self._file.tell():
                self._file.write(b"\n")
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def finished_samples(output_dir: Path) -> dict[int, Prediction]:
    """The samples that all processes so far have finished, by row; what is torn or has lost a picture is left out."""
    done: dict[int, Prediction] = {}
    for file in sorted(output_dir.glob("rows-*.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
                prediction = Prediction(**entry["prediction"])
                whole = all(_digest(output_dir / name) == digest for name, digest in entry["digests"].items())
            except (ValueError, KeyError, TypeError, OSError):
                continue
            if whole:
                done[entry["row"]] = prediction
    return done


def _pictures(prediction: Prediction) -> list[str]:
    return [
        name for name in (prediction.source, prediction.edited, prediction.target, prediction.mask) if name is not None
    ]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
