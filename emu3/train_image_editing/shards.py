"""Tokenized edits on disk, read: Parquet shards of codes and one manifest (`emu3.train_image_editing.shard_writer`).

Who reads holds nothing of them: each shard is checked and unpacked once on a machine, into a file under its sha256 in
`EARL_CACHE` (default `~/.cache/earl`), which all processes map into memory (about 4 GB per million pairs of 32x32
grids, of which the system keeps what is in use). The cache may be removed between runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from emu3.errors import UserError
from emu3.files import read_json, reading_parquet, whole_file
from emu3.run_folder import check_version

MANIFEST = "manifest.json"
LIST_FILE = "tokenized_datalist.json"
"""Which published datasets name their files in."""
FORMAT = 2
"""Of the manifest; 1 had no version."""
UNPACKING = min(8, os.cpu_count() or 1)
"""Shards that are checked and unpacked at once."""

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

    @property
    def codes(self) -> int:
        """1 more than the largest code."""
        return max(shard.codes for shard in self._shards)

    def sizes(self) -> np.ndarray:
        """Height and width of each source and of each edited grid: uint16 (N, 4), 0 where there is none."""
        return np.concatenate([shard.sizes() for shard in self._shards])

    def text_bytes(self, cot_keys: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on the UTF-8 bytes after NFC, int64 (N,): of each instruction; and of the texts of `cot_keys` with
        their keys and what stands between them, 0 where a row has none of these."""
        instructions, texts = zip(*(shard.text_bytes(cot_keys) for shard in self._shards), strict=True)
        return np.concatenate(instructions), np.concatenate(texts)


def read_rows(folder: Path | str) -> Rows:
    """Read a tokenized dataset, of which every byte was checked against the sha256 of its shard when this machine first
    read it. Processes that come meanwhile wait for the first.

    folder: may be the published list (`LIST_FILE`) of the files that it was converted from, if it lies beside them.
    Raises UserError if the manifest is missing, or a shard is missing, changed, or malformed, or where the cache has no
    room.
    """
    folder = Path(folder)
    if folder.name == LIST_FILE:
        folder = folder.parent.parent if folder.parent.name == "list" else folder.parent
    manifest, entries = _entries(folder)
    cache = Path(os.environ.get("EARL_CACHE") or Path.home() / ".cache" / "earl") / "shards-1"
    places = [(path, digest, cache / f"{digest}.arrow", _seen(path, cache / digest)) for path, digest in entries]
    try:
        with _one_at_a_time(cache / f".{folder.name}.lock"):
            missing = [place for place in places if not (place[2].is_file() and place[3].is_file())]
            with ThreadPoolExecutor(UNPACKING) as pool:
                unpacked = pool.map(lambda place: _unpack(*place), missing)
                for _ in tqdm(unpacked, f"checking {folder.name}", len(missing), unit="shard", disable=None):
                    pass
    except OSError as error:
        if error.filename in {str(path) for path, _ in entries}:
            raise
        raise UserError(
            f"{folder} cannot be unpacked into {cache}: {error.strerror}; set EARL_CACHE to a folder with room for it"
        ) from error
    return Rows(folder, manifest, [_Shard(path, place) for path, _, place, _ in places])


def check_rows(folder: Path) -> Rows:
    """As `read_rows`, but every byte is read and checked now, whatever the cache says."""
    for path, digest in _entries(folder)[1]:
        _checked(path, digest)
    return read_rows(folder)


def _entries(folder: Path) -> tuple[Mapping[str, Any], list[tuple[Path, str]]]:
    """The manifest, and each shard with its sha256."""
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
        named = all(re.fullmatch("[0-9a-f]{64}", digest) for _, _, digest in entries)
    except (KeyError, TypeError):
        entries, named = [], False
    if not entries or not named:
        raise UserError(f"{folder / MANIFEST} lists no shards: not the manifest of a tokenized dataset")
    for path, size, _ in entries:
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path} is missing or has another size than {MANIFEST} says: tokenize it again")
    return manifest, [(path, digest) for path, _, digest in entries]


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Among the processes of a machine; where there are no locks several may do the same work."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _checked(path: Path, sha256: str) -> pa.Table:
    """The table of a shard whose bytes and values are right."""
    # Parquet itself notices only one changed bit in five. The file is read once, for the digest and for the rows.
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path} has another sha256 than {MANIFEST} says, it was changed: tokenize it again")
    with reading_parquet(path):
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        table.validate(full=True)  # text that is not UTF-8, offsets that lead out of a column
        names = table.schema.names
    if (names, table.schema.types) != (SCHEMA.names, SCHEMA.types):
        raise UserError(f"{path} has columns {names}, a shard has {SCHEMA.names}, or other types")
    table = table.combine_chunks()
    columns = {name: table.column(name).combine_chunks() for name in names}
    for side in ("source", "edited"):
        _Grids(path, columns, side)
    return table


def _seen(path: Path, place: Path) -> Path:
    """The mark of a file that was checked, which another file or a change of it does not have."""
    found = path.stat()
    return place.with_suffix(f".{found.st_ino:x}-{found.st_mtime_ns:x}")


def _unpack(path: Path, sha256: str, place: Path, seen: Path) -> None:
    """Write a shard's table as it lies in memory, and mark the shard as checked."""
    table = _checked(path, sha256)
    largest = [pc.max(pc.list_flatten(table.column(f"{side}_codes"))).as_py() for side in ("source", "edited")]
    codes = 1 + max((code for code in largest if code is not None), default=-1)
    with whole_file(place) as temporary, pa.OSFile(str(temporary), "wb") as file:
        schema = SCHEMA.with_metadata({"codes": str(codes)})
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table.cast(schema), max_chunksize=max(1, len(table)))
    seen.touch()


class _Shard:
    """One shard, mapped into memory. place: what `_unpack` wrote of `path`."""

    def __init__(self, path: Path, place: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
        self.codes = int(table.schema.metadata[b"codes"])
        self._columns = {}
        for name in SCHEMA.names:
            column = table.column(name)
            self._columns[name] = column.chunk(0) if column.num_chunks else column.combine_chunks()  # which copies
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

    def sizes(self) -> np.ndarray:
        grids = self._grids.values()
        return np.stack([side for grid in grids for side in (grid.heights, grid.widths)], axis=1)

    def text_bytes(self, cot_keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        cot = self._columns["cot"]
        chosen = pc.is_in(cot.keys, pa.array(cot_keys, pa.string())).to_numpy(zero_copy_only=False)
        lengths = np.where(chosen, _nfc_bytes(cot.keys) + _nfc_bytes(cot.items) + len(" : "), 0)
        sums = np.concatenate([[0], np.cumsum(lengths)])
        offsets = cot.offsets.to_numpy() - cot.offsets[0].as_py()
        return _nfc_bytes(self._columns["instruction"]), sums[offsets[1:]] - sums[offsets[:-1]]


def _nfc_bytes(texts: pa.Array) -> np.ndarray:
    """A bound on the UTF-8 bytes of each text after NFC, which triples them at most and leaves ASCII as it is."""
    lengths, plain = (of(texts).to_numpy(zero_copy_only=False) for of in (pc.binary_length, pc.string_is_ascii))
    return np.where(plain, lengths, 3 * lengths.astype(np.int64))


class _Grids:
    """The source or the edited code grids of a shard."""

    def __init__(self, path: Path, columns: Mapping[str, Any], side: str) -> None:
        lists = columns[f"{side}_codes"]
        self._codes = lists.values.to_numpy()
        self._offsets = lists.offsets.to_numpy()
        self.heights = columns[f"{side}_height"].fill_null(0).to_numpy()
        self.widths = columns[f"{side}_width"].fill_null(0).to_numpy()
        cells = self.heights.astype(np.int64) * self.widths
        if not np.array_equal(np.diff(self._offsets), cells):
            raise UserError(f"{path}: a row's {side}_codes are not its height times its width")

    def __getitem__(self, index: int) -> np.ndarray | None:
        height, width = int(self.heights[index]), int(self.widths[index])
        if not height:
            return None
        codes: np.ndarray = self._codes[self._offsets[index] : self._offsets[index + 1]]
        return codes.reshape(height, width)
