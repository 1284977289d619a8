"""What of a benchmark occurs in a training set: pictures by their decoded pixels, instructions by their words, ids.

Equal means equal: a picture that was resized, cropped or compressed again between the two sets has other pixels and is
not found, nor is an instruction in other words. What is found is certain; finding nothing proves little.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from PIL import Image

from baselines.benchmarks.samples import Samples
from emu3.errors import UserError
from emu3.tokenizer.images import read_image
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageFile, row_id
from rl.reward.cache import pixel_digest

PAIR, PICTURE, INSTRUCTION, ID = "picture and instruction", "picture", "instruction", "id"
KINDS = (PAIR, PICTURE, ID, INSTRUCTION)
_WINDOW = 256


@dataclass(frozen=True)
class Finding:
    """Sample `sample` of the benchmark occurs as row `row` of a training set. kind: in what, one of `KINDS`."""

    sample: str
    kind: str
    row: str


@dataclass
class TrainRow:
    """What can be compared of a row; `pictures` are pixel digests, None for a picture that nobody can read."""

    id: str
    instruction: str
    pictures: Sequence[str | None]


def same_words(instruction: str) -> str:
    """An instruction without case, punctuation, spacing and the difference between equal characters (NFKC)."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", instruction).casefold()))


class LeakIndex:
    """The samples of a benchmark, ready to be looked up. Decodes every source and target once."""

    def __init__(self, samples: Samples) -> None:
        self._ids: list[str] = []
        self._instructions: list[str] = []
        self._by_picture: dict[str, set[int]] = defaultdict(set)
        self._by_instruction: dict[str, set[int]] = defaultdict(set)
        self._by_id: dict[str, int] = {}
        self._sizes: set[tuple[int, int]] = set()
        for place, sample in enumerate(samples):
            self._ids.append(sample.id)
            self._instructions.append(same_words(sample.instruction))
            self._by_instruction[self._instructions[-1]].add(place)
            self._by_id[sample.id] = place
            for picture in (sample.source, sample.target):
                if picture is not None:
                    self._by_picture[pixel_digest(picture)].add(place)
                    # A file may be turned by its camera's note, which its header's size does not show.
                    self._sizes |= {picture.size, picture.size[::-1]}

    @property
    def pictures(self) -> int:
        """How many different pictures the benchmark has."""
        return len(self._by_picture)

    def find(self, row: TrainRow, by_id: bool) -> list[Finding]:
        """Where a training row occurs in the benchmark. by_id: whether equal ids mean equal rows."""
        places = {place for digest in row.pictures if digest for place in self._by_picture.get(digest, ())}
        words = same_words(row.instruction)
        kinds = dict.fromkeys(self._by_instruction.get(words, ()), INSTRUCTION)
        if by_id and row.id in self._by_id:
            kinds[self._by_id[row.id]] = ID
        kinds |= {place: PAIR if self._instructions[place] == words else PICTURE for place in places}
        return [Finding(self._ids[place], kind, row.id) for place, kind in sorted(kinds.items())]

    def digest(self, cell: Any) -> str | None:
        """Pixel digest of an encoded picture; "" for one that no sample can equal, None for an unreadable one."""
        try:
            data: Any = cell.get("bytes") if isinstance(cell, dict) else cell
            if isinstance(cell, ImageFile):
                data = cell.read()
            # By its size alone most of a large training set needs no decoding.
            with Image.open(io.BytesIO(data)) as image:
                if image.size not in self._sizes:
                    return ""
            return pixel_digest(read_image(io.BytesIO(data), "picture"))
        except (BadRow, UserError, OSError, TypeError, ValueError, Image.DecompressionBombError):
            return None


def train_rows(
    rows: Iterable[Mapping[str, Any] | BadRow], columns: Columns, index: LeakIndex
) -> Iterator[TrainRow | BadRow]:
    """The rows of an image data set, a few hundred under way on all cores."""

    def read(numbered: tuple[int, Mapping[str, Any] | BadRow]) -> TrainRow | BadRow:
        number, values = numbered
        if isinstance(values, BadRow):
            return values
        cells = [values[name] for name in (columns.source, columns.edited) if name is not None]
        instruction = values[columns.instruction]
        if isinstance(instruction, list):
            instruction = instruction[0] if instruction else ""
        pictures = [index.digest(cell) for cell in cells if cell is not None]
        return TrainRow(row_id(values, columns, number), str(instruction or ""), pictures)

    numbered = enumerate(rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while window := list(islice(numbered, _WINDOW)):
            yield from pool.map(read, window)
