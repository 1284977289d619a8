"""The tokenised training data as their makers published them: one `.pth` file per edit and a list of the files.

    OUT/list/tokenized_datalist.json    {"prefix": "/the/makers/disk/OUT/feature", "path_list": ["<id>.pth", ...]}
    OUT/feature/<id>.pth                or OUT/<id>.pth

A `.pth` file is the zip archive of `torch.save` around a pickle of `{edit_id, original_image, edited_image, CoT,
instruction}`. The pickle is read by `published_pickle`, which executes nothing. `prefix` is a path on the makers' disk
and never followed, and no name in the list reaches a file outside of OUT.

The files do not say which vision tokenizer their codes are from, nor for which image area: `Grids` says it, and what
does not fit is a bad file.
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

from emu3.errors import UserError
from emu3.files import read_json, sha256_of
from emu3.train_image_editing.published_pickle import BadFile, read_pickle
from emu3.train_image_editing.shards import EditRow

LIST_FILE = "tokenized_datalist.json"
FILE_LIMIT = 2**20  # bytes; a pair of 128x128 grids takes 300 kB
NAME_LIMIT = 255  # bytes that Linux allows
# What zipfile raises for a damaged file, whose sizes and places it takes as they are.
ZIP_DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, ValueError, LookupError, OverflowError, RuntimeError)


@dataclass(frozen=True)
class PublishedEdits:
    """A published data set. folder: OUT. names: its files, each once. repeats: how often the list named one again."""

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
    """Read the list of a data set. data: OUT, or a folder with OUT alone in it, or the list itself.

    Raises UserError if there is no list, or it is empty or something else.
    """
    path = data if data.is_file() else _find_list(data)
    folder = path.parent.parent if path.parent.name == "list" else path.parent
    values = read_json(path)
    names = values.get("path_list") if isinstance(values, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path} is not the list of a published data set: it has no "path_list" of file names')
    if not names:
        raise UserError(f"{path} lists no files")
    unique = tuple(dict.fromkeys(names))
    return PublishedEdits(folder, unique, len(names) - len(unique), sha256_of(path))


def read_edit(folder: Path, name: str, grids: Grids) -> EditRow:
    """One file of a data set; empty texts of CoT are left out. Raises BadFile saying what is wrong with it."""
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
        raise UserError(f"{data} holds several data sets, give one: {', '.join(map(str, found.values()))[:300]}")
    return next(iter(found.values()))


def _find_file(folder: Path, name: str) -> Path:
    if not name.isprintable() or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise BadFile("its name leads out of the data set")
    for place in (folder / "feature" / name, folder / name):
        if len(place.name.encode()) <= NAME_LIMIT and place.is_file():
            if not place.resolve().is_relative_to(folder.resolve()):
                raise BadFile("it is a link that leads out of the data set")
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
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which a pickle can hold and no file of ours
        raise BadFile(f"{what} is not a text that UTF-8 can write") from None
    return value
