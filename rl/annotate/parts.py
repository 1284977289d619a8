"""The output folder: annotated rows in parts, each written whole, with a note of the rows that were left out.

    OUT/settings.json            what the run was asked for; another run does not go on in this folder
    OUT/answers.jsonl            the judge's answers as they arrive, so that an interruption costs none
    OUT/part-00000.parquet       the annotated rows of the part, in the data set's order
    OUT/part-00000.json          written last: the part is done; its rows, and those that failed with their reasons
    OUT/annotations.json         the sums, written when all parts are done

A part in which a row got no answer is tried again by the next call; what was answered comes from the cache.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.files import read_json, whole_file, write_json
from rl.annotate.annotator import NO_ANSWER
from rl.annotate.steps import Failure

ANSWERS_FILE = "answers.jsonl"
SETTINGS_FILE = "settings.json"
SUMMARY_FILE = "annotations.json"

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class FailedRow:
    """A row that was left out, by its id."""

    id: str
    failure: Failure


class Parts:
    """Parts under `folder`, of rows as `schema` has them. Raises `UserError` if a run with other settings is there."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], schema: pa.Schema) -> None:
        self.folder = folder
        self._schema = schema
        asked = json.loads(json.dumps(settings))
        file = folder / SETTINGS_FILE
        if file.exists():
            found = read_json(file)
            for key in sorted(found.keys() | asked.keys()):
                if found.get(key) != asked.get(key):
                    raise UserError(
                        f"{folder} holds annotations with {key}={found.get(key)!r}, this run has "
                        f"{key}={asked.get(key)!r}: choose another folder"
                    )
        else:
            write_json(file, asked)

    def finished(self, part: int) -> bool:
        """Whether a part is there and nothing of it can be had by asking again."""
        note = self._note(part)
        return note.exists() and not any(entry["kind"] == NO_ANSWER for entry in read_json(note)["failed"])

    def write(self, part: int, rows: Sequence[Mapping[str, Any]], failed: Sequence[FailedRow]) -> None:
        """A part without a single annotated row has a note alone."""
        if rows:
            with whole_file(self.folder / f"part-{part:05d}.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(list(rows), schema=self._schema), temporary)
        notes = [{"id": row.id, "kind": row.failure.kind, "detail": row.failure.detail} for row in failed]
        write_json(self._note(part), {"annotated": len(rows), "failed": notes})

    def summarise(self, parts: int, **more: Any) -> dict[str, Any]:
        """Write and return the sums over the parts. Raises `UserError` if no row at all was annotated."""
        notes = [read_json(self._note(part)) for part in range(parts)]
        failed = Counter(entry["kind"] for note in notes for entry in note["failed"])
        annotated = sum(note["annotated"] for note in notes)
        summary = {"annotated": annotated, "failed": dict(sorted(failed.items())), **more}
        write_json(self.folder / SUMMARY_FILE, summary)
        if not annotated:
            first = next(entry for note in notes for entry in note["failed"])
            raise UserError(f"no row was annotated; the first, {first['id']}: {first['kind']}: {first['detail']}")
        return summary

    def _note(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.json"
