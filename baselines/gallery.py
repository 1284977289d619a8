"""The pictures of a report: one card per sample, with every model's edit beside the source and the target.

Equal pictures are stored once. If all of them together are small, they stand in the page itself; else they lie in a
folder beside it and load when they come into view.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from baselines.editors.names import GROUND_TRUTH, NO_EDIT
from baselines.records import SCORED, Prediction, ScoredSample
from emu3.errors import UserError
from emu3.files import sha256_of, whole_folder

EMBED_BYTES = 12_000_000
"""Pictures up to this many bytes in all are embedded; base64 makes a third more of them."""

TINY = 100
"""Pictures up to this many pixels along a side are enlarged by a whole factor, to about `TINY_SHOWN` CSS pixels."""
TINY_SHOWN = 144
LARGEST_SHOWN = 256


@dataclass(frozen=True)
class Picture:
    """Where a picture is, the size to show it at in CSS pixels, and whether its pixels are to be seen as squares."""

    url: str
    width: int
    height: int
    tiny: bool


@dataclass(frozen=True)
class Verdict:
    """What a card says about one picture: a score of 0 to 10, or why there is none."""

    value: float | None
    label: str
    explanation: str


@dataclass
class Card:
    """One sample. `edits` and `verdicts` by model; no-edit and ground truth have verdicts, their pictures are known."""

    id: str
    split: str
    task: str
    instruction: str
    source: Picture
    target: Picture | None
    edits: dict[str, Picture] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """Scores by model, failures left out."""
        return {model: round(verdict.value, 3) for model, verdict in self.verdicts.items() if verdict.value is not None}


class Album:
    """Stores pictures for a page at `page`; `album[path]` is the stored `Picture`."""

    def __init__(self, page: Path, paths: Iterable[Path], embed_bytes: int = EMBED_BYTES) -> None:
        digests = {path: _digest(path) for path in dict.fromkeys(paths)}
        distinct = {digest: path for path, digest in digests.items()}
        folder = page.with_name(f"{page.stem}-pictures")
        embedded = sum(path.stat().st_size for path in distinct.values()) <= embed_bytes
        if not embedded:
            with whole_folder(folder) as temporary:
                for digest, path in distinct.items():
                    shutil.copyfile(path, temporary / f"{digest}.png")
        stored = {
            digest: _picture(path, _data_url(path) if embedded else f"{folder.name}/{digest}.png")
            for digest, path in distinct.items()
        }
        self._pictures = {path: stored[digest] for path, digest in digests.items()}

    def __getitem__(self, path: Path) -> Picture:
        return self._pictures[path]


def make_cards(
    predictions: Sequence[tuple[Path, Prediction]], scores: Sequence[ScoredSample], page: Path
) -> list[Card]:
    """Cards in the order in which samples come up. `predictions` go with the folder that their paths start from."""
    verdicts = {(score.benchmark, score.id, score.model): _verdict(score) for score in scores}
    paths = [
        folder / name
        for folder, row in predictions
        for name in (row.source, row.edited, row.target)
        if name is not None
    ]
    album = Album(page, paths)
    cards: dict[tuple[str, str], Card] = {}
    for folder, row in predictions:
        card = cards.setdefault(
            (row.benchmark, row.id),
            Card(
                id=row.id,
                split=row.split,
                task=row.task,
                instruction=row.instruction,
                source=album[folder / row.source],
                target=album[folder / row.target] if row.target is not None else None,
            ),
        )
        if row.editor not in (NO_EDIT, GROUND_TRUTH):
            card.edits[row.model] = album[folder / row.edited]
        if (verdict := verdicts.get((row.benchmark, row.id, row.model))) is not None:
            card.verdicts[row.model] = verdict
    return list(cards.values())


def _verdict(score: ScoredSample) -> Verdict:
    if score.status != SCORED or score.value is None:
        return Verdict(None, score.status, f"no score: {score.status}. {(score.detail or '')[:300]}")
    parts = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in score.parts.items())
    return Verdict(score.value, f"{score.value:.1f}", parts)


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)[:24]
    except OSError as error:
        raise UserError(f"the picture {path} cannot be read: {error.strerror}") from None


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _picture(path: Path, url: str) -> Picture:
    with Image.open(path) as image:
        width, height = image.size
    tiny = max(width, height) <= TINY
    scale = round(TINY_SHOWN / width) if tiny else min(1.0, LARGEST_SHOWN / width)
    return Picture(url, round(width * scale), round(height * scale), tiny)
