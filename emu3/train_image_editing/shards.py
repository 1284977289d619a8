"""Tokenized edits on disk: Parquet shards of codes and one manifest.

A shard covers a fixed range of input rows, so it is the unit of work, of resuming and of checking. It is written
whole or not at all and carries in its Parquet metadata what decided its content (`settings`) and the rows that
failed, so nothing about it lives in a second file that could disagree. `manifest.json` is written last, when every
shard is there: a folder without it is unfinished. Equal input gives equal bytes, whoever wrote which shard.

Codes are uint16, row-major: 4 kB for a pair of 32x32 grids, where the published one-pickle-per-pair files take 19.
The reader holds a dataset in memory (about 4 GB per million such pairs).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import UserError
from emu3.files import path_from, read_json, reading_parquet, sha256_of, whole_file, write_json
from emu3.run_folder import VERSION, check_version, refuse_differences

MANIFEST = "manifest.json"
LIST_FILE = "tokenized_datalist.json"
"""Which published datasets name their files in."""
FORMAT = 2
"""Of the manifest; 1 had no version."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source_codes", pa.list_(pa.uint16()), nullable=False),
        pa.field("source_height", pa.uint16(), nullable=False),
        pa.field("source_width", pa.uint16(), nullable=False),
        pa.field("edited_codes", pa.list_(pa.uint16())),
        pa.field("edited_height", pa.uint16()),
        pa.field("edited_width", pa.uint16()),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("cot", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("task", pa.string()),
    ]
)


@dataclass(frozen=True)
class EditRow:
    """One edit. source, edited: uint16 codes (h, w); edited is None where the dataset has no target image.

    cot: reasoning texts by key. task: the kind of edit, if the dataset says it.
    """

    id: str
    source: np.ndarray
    edited: np.ndarray | None
    instruction: str
    cot: Mapping[str, str] = field(default_factory=dict)
    task: str | None = None


@dataclass(frozen=True)
class FailedRow:
    """An input row that could not be tokenized, and why."""

    id: str
    why: str


class ShardWriter:
    """Writes the `shards` shards of one dataset into `folder`.

    settings: JSON values that decide the content; a shard found with other settings is an error, not a mixture.
    vision: where the vision tokenizer is, a folder or Hub id, for whoever trains on the data; it decides nothing.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shards: int, vision: str | None = None) -> None:
        self.folder = folder
        self._vision = vision
        self.settings = dict(settings)
        self.shards = shards

    def path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}-of-{self.shards:05d}.parquet"

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
        paths = [self.path(index) for index in range(self.shards)]
        if not all(path.is_file() for path in paths):
            return None
        if strangers := sorted(set(self.folder.glob("shard-*.parquet")) - set(paths)):
            raise UserError(f"{strangers[0]} belongs to another run: tokenize into an empty folder")
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


class Rows(Sequence[EditRow]):
    """The rows of one tokenized dataset, in order. `manifest` holds its counts and how it was made."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], shards: Sequence[_Shard]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> EditRow:  # type: ignore[override]  # no slices: nobody needs them
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        return self._shards[shard].row(int(index) - start)

    def __iter__(self) -> Iterator[EditRow]:
        for shard in self._shards:
            for index in range(len(shard)):
                yield shard.row(index)


def read_rows(folder: Path | str) -> Rows:
    """Read a tokenized dataset, every byte of it checked against the sha256 of its shard.

    folder: may be the published list (`LIST_FILE`) of the files that it was converted from, if it lies beside them.
    Raises UserError if the manifest is missing, or a shard is missing, changed, or malformed.
    """
    folder = Path(folder)
    if folder.name == LIST_FILE:
        folder = folder.parent.parent if folder.parent.name == "list" else folder.parent
    if not (folder / MANIFEST).is_file() and any((folder / place / LIST_FILE).is_file() for place in ("list", ".")):
        raise UserError(
            f"{folder} holds published .pth files; put shards of them beside them, once: python -m "
            f"emu3.train_image_editing.convert_published --data {folder} --output-path {folder} --model-path "
            "BAAI/Emu3-VisionTokenizer"
        )
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder / MANIFEST} does not exist: not a tokenized dataset, or one that is unfinished")
    manifest = read_json(folder / MANIFEST)
    if isinstance(manifest, Mapping):
        check_version(folder / MANIFEST, manifest, FORMAT)
    try:
        entries = [(folder / Path(entry["file"]).name, entry["bytes"], entry["sha256"]) for entry in manifest["shards"]]
    except (KeyError, TypeError):
        entries = []
    if not entries:
        raise UserError(f"{folder / MANIFEST} lists no shards: not the manifest of a tokenized dataset")
    shards = []
    for path, size, digest in entries:
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path} is missing or has another size than {MANIFEST} says: tokenize it again")
        shards.append(_Shard(path, digest))
    return Rows(folder, manifest, shards)


def check_alike(datasets: Sequence[Rows], expected: Mapping[str, Any]) -> None:
    """Codes of another vision tokenizer or image area are other words for other images: never mix them.

    expected: what the manifests should say under some keys. Raises UserError naming the folder that differs.
    """
    for rows in datasets:
        for key, value in expected.items():
            if rows.manifest.get(key) != value:
                raise UserError(f"{rows.folder} has {key} {rows.manifest.get(key)}, expected {value}")
        for key in ("vision_sha256", "image_area", "factor"):
            found, first = rows.manifest.get(key), datasets[0].manifest.get(key)
            if found != first:
                raise UserError(
                    f"{rows.folder} has {key} {found}, {datasets[0].folder} has {first}: tokenize both alike"
                )


class _Shard:
    """One shard in memory: codes as flat NumPy arrays, the rest as Arrow columns. sha256: of the whole file."""

    def __init__(self, path: Path, sha256: str) -> None:
        # Parquet itself notices only one changed bit in five. The file is read once, for the digest and for the rows.
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{path} has another sha256 than {MANIFEST} says, it was changed: tokenize it again")
        with reading_parquet(path):
            table = pq.read_table(pa.BufferReader(data))
            table.validate(full=True)  # text that is not UTF-8, offsets that lead out of a column
            names = table.schema.names
        if (names, table.schema.types) != (SCHEMA.names, SCHEMA.types):
            raise UserError(f"{path} has columns {names}, a shard has {SCHEMA.names}, or other types")
        self._columns = {name: table.column(name).combine_chunks() for name in SCHEMA.names}
        self._grids = {side: _Grids(path, self._columns, side) for side in ("source", "edited")}
        self._length = table.num_rows

    def __len__(self) -> int:
        return self._length

    def row(self, index: int) -> EditRow:
        source = self._grids["source"][index]
        return EditRow(
            id=self._columns["id"][index].as_py(),
            source=cast(np.ndarray, source),
            edited=self._grids["edited"][index],
            instruction=self._columns["instruction"][index].as_py(),
            cot=dict(self._columns["cot"][index].as_py()),
            task=self._columns["task"][index].as_py(),
        )


class _Grids:
    """The source or the edited code grids of a shard."""

    def __init__(self, path: Path, columns: Mapping[str, Any], side: str) -> None:
        lists = columns[f"{side}_codes"]
        self._codes = lists.values.to_numpy()
        self._offsets = lists.offsets.to_numpy()
        self._heights = columns[f"{side}_height"].fill_null(0).to_numpy()
        self._widths = columns[f"{side}_width"].fill_null(0).to_numpy()
        cells = self._heights.astype(np.int64) * self._widths
        if not np.array_equal(np.diff(self._offsets), cells):
            raise UserError(f"{path}: a row's {side}_codes are not its height times its width")

    def __getitem__(self, index: int) -> np.ndarray | None:
        height, width = int(self._heights[index]), int(self._widths[index])
        if not height:
            return None
        codes: np.ndarray = self._codes[self._offsets[index] : self._offsets[index + 1]]
        return codes.reshape(height, width)


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
