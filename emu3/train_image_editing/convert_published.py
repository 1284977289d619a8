"""Turn published tokenized data, one `.pth` file per edit and a list of the files, into shards of codes.

    python -m emu3.train_image_editing.convert_published --data OUT --output data/omniedit --vision VISION
    python -m emu3.launch --ranks 8 emu3.train_image_editing.convert_published --data OUT ...    # on 8 processes

    OUT/list/tokenized_datalist.json    {"prefix": "/the/makers/disk/OUT/feature", "path_list": ["<id>.pth", ...]}
    OUT/feature/<id>.pth                or OUT/<id>.pth

Shards, manifest, workers and restarts are those of `prepare_data`. A file that cannot be used is recorded in the
manifest with its reason and counted, and never stops the run.

A `.pth` file is the zip archive of `torch.save` around a pickle of `{edit_id, original_image, edited_image, CoT,
instruction}`. The pickle is read by `published_pickle`, which executes nothing. `prefix` is a path on the makers' disk
and never followed, and no name in the list reaches a file outside of OUT.

The files do not name the vision tokenizer that their codes are from, nor the image area: `Grids` has both, and what
does not fit is a bad file. `vision_sha256` is that of `--vision`, the vision tokenizer of which you know that the
codes are its own; without it the manifest has null. Data of an unknown tokenizer are not mixed with data of a known
one, and GRPO refuses them.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from emu3.archives import unpack
from emu3.errors import UserError, run_main, utf8_fault
from emu3.files import read_json, sha256_of
from emu3.mllm.layout import TokenLayout
from emu3.run_folder import owned
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing.arguments import ConvertArguments, parse_convert
from emu3.train_image_editing.commands import Worker
from emu3.train_image_editing.published_pickle import BadFile, read_pickle
from emu3.train_image_editing.shard_writer import FailedRow
from emu3.train_image_editing.shards import LIST_FILE, EditRow

FILE_LIMIT = 2**20  # bytes; a pair of 128x128 grids takes 300 kB
NAME_LIMIT = 255  # bytes that Linux allows
# What zipfile raises for a damaged file, whose sizes and places it takes as they are.
ZIP_DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, ValueError, LookupError, OverflowError, RuntimeError)


def convert(arguments: ConvertArguments) -> dict[str, Any] | None:
    """Write this worker's shards. Returns the manifest once all shards are there, else None.

    Raises UserError for missing or other data, an output folder of another run, and if no file at all can be used.
    """
    if arguments.archive is not None and not Path(arguments.data).exists():
        unpack(Path(arguments.archive), Path(arguments.data))
    edits = open_published(Path(arguments.data))
    grids, digest = _vision(arguments)
    worker = Worker(arguments, _settings(arguments, edits, grids, digest), edits.names, arguments.model_path)
    with worker.progress(worker.rows, "file") as bar:
        for index, names in worker.parts.items():
            rows: list[EditRow] = []
            failed: list[FailedRow] = []
            for name in names:
                try:
                    rows.append(read_edit(edits.folder, name, grids))
                except BadFile as reason:
                    failed.append(FailedRow(name if name.isprintable() else ascii(name), str(reason)))
                bar.update()
            worker.write(index, rows, failed)

    manifest, summary = worker.finish("")
    lines = [summary]
    if manifest is not None:
        bad = manifest["failed"]
        lines[0] += f", {len(bad)} bad files"
        if bad:
            lines.append(f"the bad files are in manifest.json; the first is {bad[0]['id']}: {bad[0]['why']}")
        if edits.repeats:
            lines.append(f"the list names {edits.repeats} files again, which were taken once")
        if arguments.model_path is None:
            lines.append(
                "vision tokenizer unknown (no --model-path): train on these data only with data of the same source"
            )
    print("\n".join(lines), flush=True)
    return manifest


def _vision(arguments: ConvertArguments) -> tuple[Grids, str | None]:
    """The grids to expect, and the digest of the weights, None if unknown: then the released sizes are taken."""
    if arguments.model_path is None:
        return Grids(TokenLayout().codebook_size, StillVQConfig().factor, arguments.image_area), None
    config = StillVQ.from_pretrained(arguments.model_path, parts="encoder").config
    return Grids(config.codebook_size, config.factor, arguments.image_area), weights_digest(arguments.model_path)


def _settings(arguments: ConvertArguments, edits: PublishedEdits, grids: Grids, digest: str | None) -> dict[str, Any]:
    """What decides the content of the shards; null is what the published files do not say."""
    return {
        "image_area": grids.image_area,
        "factor": grids.factor,
        "vision_sha256": digest,
        "dtype": None,
        "resize": None,
        "data": {
            "name": arguments.data,
            "list_sha256": edits.list_sha256,
            "rows": len(edits.names),
            "listed_again": edits.repeats,
        },
        "shard_rows": arguments.shard_rows,
    }


@dataclass(frozen=True)
class PublishedEdits:
    """A published dataset. folder: OUT. names: its files, each once. repeats: how often the list named one again."""

    folder: Path
    names: tuple[str, ...]
    repeats: int
    list_sha256: str


@dataclass(frozen=True)
class Grids:
    """What the code grids are: `codebook_size` codes, `factor` pixels per code along an axis, `image_area` pixels."""

    codebook_size: int
    factor: int
    image_area: int

    def check(self, array: Any, what: str) -> np.ndarray:
        """`array` as a uint16 grid (h, w). Raises BadFile if it is no grid of codes of about the image area."""
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iu":
            shape = f" of shape {array.shape} and {array.dtype}" if isinstance(array, np.ndarray) else ""
            raise BadFile(f"{what} is a {type(array).__name__}{shape}, not a grid of integers")
        if array.min() < 0 or array.max() >= self.codebook_size:
            raise BadFile(f"{what} has codes from {array.min()} to {array.max()}, not 0 to {self.codebook_size - 1}")
        height, width = array.shape
        cells = self.image_area / self.factor**2
        # Sides are rounded to whole pixels, then to whole cells: each is off by less than one cell.
        fits = (height - 1) * (width - 1) <= cells <= (height + 1) * (width + 1)
        if not fits or max(height, width) > np.iinfo(np.uint16).max:
            raise BadFile(f"{what} has {height}x{width} codes, too many or too few for {self.image_area} pixels")
        return array.astype(np.uint16)


def open_published(data: Path) -> PublishedEdits:
    """Read the list of a dataset. data: OUT, or a folder with OUT alone in it, or the list itself.

    Raises UserError if there is no list, or it is empty or something else.
    """
    path = data if data.is_file() else _find_list(data)
    folder = path.parent.parent if path.parent.name == "list" else path.parent
    values = read_json(path)
    names = values.get("path_list") if isinstance(values, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path} is not the list of a published dataset: it has no "path_list" of file names')
    if not names:
        raise UserError(f"{path} lists no files")
    unique = tuple(dict.fromkeys(names))
    return PublishedEdits(folder, unique, len(names) - len(unique), sha256_of(path))


def read_edit(folder: Path, name: str, grids: Grids) -> EditRow:
    """One file of a dataset; empty texts of CoT are left out. Raises BadFile saying what is wrong with it."""
    record = _read_record(_find_file(folder, name))
    cot = record["CoT"]
    if not isinstance(cot, dict):
        raise BadFile(f"CoT is a {type(cot).__name__}, not a dict of texts")
    return EditRow(
        id=_text(record["edit_id"], "edit_id").removesuffix(".pth"),
        source=grids.check(record["original_image"], "original_image"),
        edited=grids.check(record["edited_image"], "edited_image"),
        instruction=_text(record["instruction"], "instruction"),
        cot={_text(key, "a key of CoT"): _text(text, "a text of CoT") for key, text in cot.items() if text},
    )


def _find_list(data: Path) -> Path:
    if not data.is_dir():
        raise UserError(f"published data {data} does not exist")
    patterns = (f"list/{LIST_FILE}", LIST_FILE, f"*/list/{LIST_FILE}", f"*/{LIST_FILE}")
    found = {path.resolve(): path for pattern in patterns for path in sorted(data.glob(pattern))}
    if not found:
        raise UserError(f"{data} has no list/{LIST_FILE}: give the folder that has one, or the list itself")
    if len(found) > 1:
        raise UserError(f"{data} holds several datasets, give one: {', '.join(map(str, found.values()))[:300]}")
    return next(iter(found.values()))


def _find_file(folder: Path, name: str) -> Path:
    if not name.isprintable() or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise BadFile("its name leads out of the dataset")
    for place in (folder / "feature" / name, folder / name):
        if len(place.name.encode()) <= NAME_LIMIT and place.is_file():
            if not place.resolve().is_relative_to(folder.resolve()):
                raise BadFile("it is a link that leads out of the dataset")
            return place
    raise BadFile("the file is not there")


def _read_record(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > FILE_LIMIT:
        raise BadFile(f"larger than {FILE_LIMIT} bytes")
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith("/data.pkl")]
            if len(members) != 1 or members[0].compress_type != zipfile.ZIP_STORED:
                raise BadFile("it has not one data.pkl, stored as torch.save does")
            record = read_pickle(archive.read(members[0]))
    except ZIP_DAMAGE as error:
        raise BadFile(f"not a whole file of torch.save: {error or 'it ends too early'}") from None
    if not isinstance(record, dict):
        raise BadFile(f"holds a {type(record).__name__}, not a dict")
    if missing := {"edit_id", "original_image", "edited_image", "CoT", "instruction"} - record.keys():
        raise BadFile(f"has no {min(missing)}")
    return record


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadFile(f"{what} is empty or not a text")
    if fault := utf8_fault(value):
        raise BadFile(f"{what} {fault}")
    return value


def main() -> None:
    arguments = parse_convert()
    with owned(Path(arguments.output_path), (arguments.rank, arguments.world_size)):
        convert(arguments)


if __name__ == "__main__":
    run_main(main)
