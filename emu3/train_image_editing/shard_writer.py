"""Tokenized edits on disk, written: Parquet shards of codes and one manifest.

A shard covers a fixed range of input rows, so it is the unit of work, of resuming and of checking. It is written
whole or not at all and carries in its Parquet metadata what decided its content (`settings`) and the rows that
failed, so nothing about it lives in a second file that could disagree. `manifest.json` is written last, when every
shard is there: a folder without it is unfinished. Equal input gives equal bytes, whoever wrote which shard.

Codes are uint16, row-major: 4 kB for a pair of 32x32 grids, where the published one-pickle-per-pair files take 19.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.files import path_from, reading_parquet, sha256_of, whole_file, write_json
from emu3.run_folder import VERSION, refuse_differences
from emu3.train_image_editing.shards import FORMAT, MANIFEST, SCHEMA, EditRow


@dataclass(frozen=True)
class FailedRow:
    """An input row that could not be tokenized, and why."""

    id: str
    why: str


class ShardWriter:
    """Writes the `shards` shards of one dataset into `folder`.

    settings: JSON values that decide the content; a shard found with other settings is an error, not a mixture.
    vision: where the vision tokenizer is, a folder or Hub id, for whoever trains on the data; it decides nothing.
    Raises UserError if the folder holds shards of another cut, as of data that had more rows then.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shards: int, vision: str | None = None) -> None:
        self.folder = folder
        self._vision = vision
        self.settings = dict(settings)
        self.shards = shards
        self._refuse_others()

    def path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}-of-{self.shards:05d}.parquet"

    def _paths(self) -> list[Path]:
        return [self.path(index) for index in range(self.shards)]

    def _refuse_others(self) -> None:
        if others := sorted(set(self.folder.glob("shard-*.parquet")) - set(self._paths())):
            raise UserError(
                f"{others[0]} belongs to another run, of other rows or --shard-rows: choose an empty folder"
            )

    def finished(self, index: int) -> bool:
        """Whether the shard is there. Raises UserError if it was written with other settings."""
        path = self.path(index)
        if not path.is_file():
            return False
        self._check_settings(path, _read_metadata(path))
        return True

    def write(self, index: int, rows: Sequence[EditRow], failed: Sequence[FailedRow]) -> None:
        """Write one shard, whole or not at all; `rows` may be empty."""
        metadata = {"settings": self.settings, "failed": [vars(row) for row in failed]}
        schema = SCHEMA.with_metadata({key: json.dumps(value) for key, value in metadata.items()})
        table = pa.Table.from_pylist([_record(row) for row in rows], schema=schema)
        with whole_file(self.path(index)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def finish(self) -> dict[str, Any] | None:
        """Write the manifest and return it; None while shards are missing.

        Raises UserError if the folder holds shards of another cut, or if not one row could be tokenized; the shards,
        which then hold nothing, are removed.
        """
        paths = self._paths()
        if not all(path.is_file() for path in paths):
            return None
        self._refuse_others()
        shards: list[dict[str, Any]] = []
        failed: list[dict[str, str]] = []
        with_target = 0
        for path in paths:
            metadata = _read_metadata(path)
            self._check_settings(path, metadata)
            failed += metadata["failed"]
            with reading_parquet(path):
                edited = pq.read_table(path, columns=["edited_height"])
            with_target += len(edited) - edited.column(0).null_count
            shards.append(
                {"file": path.name, "rows": len(edited), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            )
        rows = sum(shard["rows"] for shard in shards)
        if not rows:
            for path in paths:
                path.unlink(missing_ok=True)
            raise UserError(f"not one of {len(failed)} rows could be used; row {failed[0]['id']}: {failed[0]['why']}")
        manifest = {
            VERSION: FORMAT,
            "rows": rows,
            "rows_with_target": with_target,
            **self.settings,
            **self._where(),
            "failed": failed,
            "shards": shards,
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    def _where(self) -> dict[str, str]:
        if self._vision is None:
            return {}
        return {"vision": path_from(self.folder, self._vision) if Path(self._vision).is_dir() else self._vision}

    def _check_settings(self, path: Path, metadata: Mapping[str, Any]) -> None:
        # Rules are named with the module that has them; where it lies changes nothing.
        found, now = (
            {
                key: re.sub(r" \(emu3\.[\w.]+\)$", "", value) if isinstance(value, str) else value
                for key, value in of.items()
            }
            for of in (metadata["settings"], self.settings)
        )
        refuse_differences(path, found, now, "tokenize into another folder")


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(path).metadata or {}
        return {key: json.loads(metadata[key.encode()]) for key in ("settings", "failed")}
    except (pa.ArrowException, OSError, ValueError, KeyError):
        raise UserError(f"{path} is not a shard of this program: remove it or choose another folder") from None


def _record(row: EditRow) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": row.id,
        "instruction": row.instruction,
        "cot": list(row.cot.items()),
        "task": row.task,
    }
    for side, codes in (("source", row.source), ("edited", row.edited)):
        height, width = (None, None) if codes is None else codes.shape
        flat = None if codes is None else codes.ravel()
        record |= {f"{side}_codes": flat, f"{side}_height": height, f"{side}_width": width}
    return record
