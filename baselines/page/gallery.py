"""The images of a report: every sample with its source, its target and each model's edit, as data for the page.

Equal images are stored once. A few small ones stand in the page itself; more lie in a folder beside it, which costs
no space where the file system can link, and load when they come into view.

A chain of thought speaks of places in its source. A box is written `[x1, y1, x2, y2]`, a point `(x, y)` or `[x, y]`, in
pixels of the source as the model saw it, x to the right and y down; numbers of which none is above 1 are shares of the
sides. What does not lie in the image is not drawn: other lists of two or four numbers look the same.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from baselines.page.run_folder import RunFolder
from baselines.results.records import SCORED, VIESCORE, Prediction, ScoredSample
from baselines.tables.grid import number
from baselines.tables.paper import title_of
from emu3.boxes import BOX, NUMBER
from emu3.errors import UserError
from emu3.files import sha256_of

EMBED_BYTES = 1_000_000
"""Images up to this many bytes in all are embedded: base64 makes a third more of them, and none loads lazily."""

TINY = 100
"""Images up to this many pixels along a side are enlarged by a whole factor, to about `TINY_SHOWN` CSS pixels."""
TINY_SHOWN = 144
LARGEST_SHOWN = 256

LONGEST_DETAIL = 300

_OWN_NAME = re.compile(r"[0-9a-f]{24}\.png")
_POINT = re.compile(rf"[(\[]{NUMBER},{NUMBER}[)\]]")


class Album:
    """Stores images for a page at `page`. `album.images` has an entry (address, width, height in CSS pixels, tiny:
    whether its pixels are to be seen as squares) for each, `album[path]` is its place there."""

    def __init__(self, page: Path, paths: Iterable[Path], embed_bytes: int = EMBED_BYTES) -> None:
        digests = {path: _digest(path) for path in dict.fromkeys(paths)}
        distinct = {digest: path for path, digest in digests.items()}
        folder = page.with_name(f"{page.stem}-pictures")
        embedded = sum(path.stat().st_size for path in distinct.values()) <= embed_bytes
        if not embedded:
            _fill(folder, {f"{digest}.png": path for digest, path in distinct.items()})
        self.images = [
            _image(path, _data_url(path) if embedded else f"{folder.name}/{digest}.png")
            for digest, path in distinct.items()
        ]
        places = {digest: place for place, digest in enumerate(distinct)}
        self._places = {path: places[digest] for path, digest in digests.items()}

    def __getitem__(self, path: Path) -> int:
        return self._places[path]


def make_gallery(found: RunFolder, page: Path) -> dict[str, Any]:
    """What the page's script draws the gallery from, as JSON values.

    `models` are in the order of the tables; `edits` and `verdicts` of a sample have an entry for each: the place of the
    edited image, and [score, label, explanation]. Samples come in the order in which they are found.
    """
    album = Album(
        page,
        [
            folder / name
            for folder, row in found.predictions
            for name in (row.source, row.edited, row.target)
            if name is not None
        ],
    )
    verdicts = {(score.benchmark, score.id, score.model): _verdict(score) for score in found.scores}
    places = {model: place for place, model in enumerate(found.models)}
    samples: dict[tuple[str, str], dict[str, Any]] = {}
    for folder, row in found.predictions:
        sample = samples.setdefault((row.benchmark, row.id), _sample(row, folder, album, len(places)))
        place = places[row.model]
        sample["edits"][place] = album[folder / row.edited]
        sample["verdicts"][place] = verdicts.get((row.benchmark, row.id, row.model))
        if row.reasoning:
            marks = marks_in(row.reasoning, _size(folder / row.source))
            sample["reasoning"].append(
                {"model": place, "text": row.reasoning, "boxes": marks.boxes, "points": marks.points}
            )
    return {
        "models": found.models,
        "labels": [found.label(model) for model in found.models],
        "bounds": [places[model] for model in found.bounds],
        "noEdit": places.get(found.model_of("no-edit") or ""),
        "groundTruth": places.get(found.model_of("ground-truth") or ""),
        "scale": found.scale,
        "images": album.images,
        "samples": list(samples.values()),
    }


def _sample(row: Prediction, folder: Path, album: Album, models: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "benchmark": title_of(row.benchmark),
        "split": row.split,
        "task": row.task,
        "set": row.source_set,
        "text": row.instruction,
        "source": album[folder / row.source],
        "target": album[folder / row.target] if row.target is not None else None,
        "edits": [None] * models,
        "verdicts": [None] * models,
        "reasoning": [],
    }


def _verdict(score: ScoredSample) -> list[Any]:
    """Score or null, what the page says in its place, and the parts or the reason behind it."""
    if score.status != SCORED or score.value is None:
        return [None, score.status, f"no score: {score.status}. {(score.detail or '')[:LONGEST_DETAIL]}"]
    parts = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in score.parts.items())
    label = f"{score.value:.1f}" if score.metric == VIESCORE else number(score.value, score.metric)
    return [round(score.value, 4), label, parts]


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)[:24]
    except OSError as error:
        raise UserError(f"the image {path} cannot be read: {error.strerror}") from None


def _fill(folder: Path, images: dict[str, Path]) -> None:
    """Make `folder` hold these images, and none of an earlier page; what else lies there is not ours. Names are
    digests: one that is there needs no second look, and thousands of files need not be synced one by one, since the
    page that names them is written after them."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir() if _OWN_NAME.fullmatch(path.name)}
    for name in there - images.keys():
        (folder / name).unlink()
    for name, path in images.items():
        if name not in there:
            try:
                os.link(path, folder / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, folder / name)


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _image(path: Path, url: str) -> tuple[str, int, int, bool]:
    width, height = _size(path)
    tiny = max(width, height) <= TINY
    scale = round(TINY_SHOWN / width) if tiny else min(1.0, LARGEST_SHOWN / width)
    return url, round(width * scale), round(height * scale), tiny


@dataclass(frozen=True)
class BoxesAndPoints:
    """Shares of width and height, 0 to 1: boxes (left, top, right, bottom), points (x, y); each once, in order."""

    boxes: list[tuple[float, ...]]
    points: list[tuple[float, ...]]


def marks_in(text: str, size: tuple[int, int]) -> BoxesAndPoints:
    """The marks in `text` about an image of `size` (width, height) pixels."""
    boxes = [box for box in _shares(BOX, text, size) if box[0] < box[2] and box[1] < box[3]]
    return BoxesAndPoints(boxes, _shares(_POINT, text, size))


def _shares(pattern: re.Pattern[str], text: str, size: tuple[int, int]) -> list[tuple[float, ...]]:
    found: dict[tuple[float, ...], None] = {}
    for match in pattern.finditer(text):
        numbers = [float(number) for number in match.groups()]
        if any(number > 1 for number in numbers):
            numbers = [number / size[place % 2] for place, number in enumerate(numbers)]
        if all(0 <= number <= 1 for number in numbers):
            found[tuple(round(number, 4) for number in numbers)] = None
    return list(found)
