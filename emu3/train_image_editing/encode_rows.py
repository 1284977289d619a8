"""From rows with images to rows with codes: read and decode ahead on the CPU, encode on the device.

One thread reads rows, others decode and resize their images (Pillow frees the interpreter while it does), up to
two windows ahead of the encoder. A window is a stretch of a shard with enough images that those of one size fill
whole batches, sources and targets together, and a image that occurs more than once in a shard is encoded once.
Windows are cut within a shard and nothing is remembered across shards: which images share a batch, and so the
last bits of what the network computes, depends on the shard alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from PIL import Image

from emu3.boxes import rescale_boxes
from emu3.errors import UserError
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.images import scale_image
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageRow, read_row, row_id
from emu3.train_image_editing.row_files import RowSource
from emu3.train_image_editing.shards import EditRow, FailedRow

WINDOW_PIXELS = 2**25  # resized, about 100 MB of RGB; a source and a target for each row
WINDOWS_AHEAD = 2
DECODE_THREADS = min(8, os.cpu_count() or 1)
IMAGES_PER_TICK = 64


class RowEncoder:
    """Encodes rows of `rows`, images of about `area` pixels."""

    def __init__(self, rows: RowSource, columns: Columns, codec: ImageCodec, area: int) -> None:
        self.images_per_row = 1 if columns.edited is None else 2
        self._rows = rows
        self._columns = columns
        self._codec = codec
        self._area = area

    def shards(
        self, parts: Mapping[int, np.ndarray], progress: Callable[[int], object]
    ) -> Iterator[tuple[int, list[EditRow], list[FailedRow]]]:
        """For each shard: its number, its edits in the order of its rows, and the rows that could not be used.

        parts: ascending row numbers by shard. progress: called with a number of images done, several times a
        window; they add up to `images_per_row` for each row.
        """
        step = max(1, WINDOW_PIXELS // (2 * self._area))
        windows = [(shard, part[i : i + step]) for shard, part in parts.items() for i in range(0, len(part), step)]
        with closing(self._decoded(part for _, part in windows)) as decoded:
            by_shard = zip((shard for shard, _ in windows), decoded, strict=True)
            for shard, group in groupby(by_shard, key=itemgetter(0)):
                edits: list[EditRow] = []
                failed: list[FailedRow] = []
                codes: dict[str, np.ndarray] = {}
                for _, window in group:
                    failed += [row for row in window if isinstance(row, FailedRow)]
                    usable = [row for row in window if isinstance(row, ImageRow)]
                    new = self._encode_new(usable, codes, progress)
                    progress(self.images_per_row * len(window) - new)
                    edits += [_edit(row, codes) for row in usable]
                yield shard, edits, failed

    def _decoded(self, windows: Iterable[np.ndarray]) -> Generator[list[ImageRow | FailedRow], None, None]:
        reader, decoders = ThreadPoolExecutor(1), ThreadPoolExecutor(DECODE_THREADS)

        def read(indices: np.ndarray) -> list[Future[ImageRow | FailedRow]]:
            rows = zip(self._rows.read(indices), indices, strict=True)
            return [decoders.submit(self._decode, values, int(index)) for values, index in rows]

        waiting: deque[Future[list[Future[ImageRow | FailedRow]]]] = deque()
        try:
            for indices in windows:
                waiting.append(reader.submit(read, indices))
                if len(waiting) > WINDOWS_AHEAD:
                    yield [row.result() for row in waiting.popleft().result()]
            while waiting:
                yield [row.result() for row in waiting.popleft().result()]
        finally:
            for pool in (reader, decoders):
                pool.shutdown(cancel_futures=True)

    def _decode(self, values: Mapping[str, Any] | BadRow, index: int) -> ImageRow | FailedRow:
        if isinstance(values, BadRow):
            return FailedRow(str(index), str(values))
        try:
            row = read_row(values, self._columns, index)
            scaled = self._scale(row.source)
            edited = None if row.edited is None else self._scale(row.edited)
            cot = self._rescaled(row, scaled.size)
            return replace(row, source=scaled, edited=edited, cot=cot)
        except BadRow as reason:
            return FailedRow(row_id(values, self._columns, index), str(reason))

    def _scale(self, image: Image.Image) -> Image.Image:
        try:
            return scale_image(image, self._area, self._codec.factor)
        except UserError as error:
            raise BadRow(str(error)) from error

    def _rescaled(self, row: ImageRow, new_size: tuple[int, int]) -> dict[str, str]:
        width, height = (side - side % self._codec.factor for side in new_size)
        return {key: rescale_boxes(text, row.source.size, new_size, (width, height)) for key, text in row.cot.items()}

    def _encode_new(
        self, rows: Sequence[ImageRow], codes: dict[str, np.ndarray], progress: Callable[[int], object]
    ) -> int:
        """Add to `codes`, by digest, the images of `rows` that are not there yet; returns how many they were."""
        images: dict[str, Image.Image] = {}
        for row in rows:
            images[row.source_digest] = row.source
            if row.edited is not None and row.edited_digest is not None:
                images[row.edited_digest] = row.edited
        # Ordered by size: the end of a call cuts at most one size in two.
        new = sorted((digest for digest in images if digest not in codes), key=lambda digest: images[digest].size)
        for start in range(0, len(new), IMAGES_PER_TICK):
            digests = new[start : start + IMAGES_PER_TICK]
            codes.update(zip(digests, self._codec.encode([images[digest] for digest in digests]), strict=True))
            progress(len(digests))
        return len(new)


def _edit(row: ImageRow, codes: Mapping[str, np.ndarray]) -> EditRow:
    return EditRow(
        id=row.id,
        source=codes[row.source_digest],
        edited=None if row.edited_digest is None else codes[row.edited_digest],
        instruction=row.instruction,
        cot=row.cot,
        task=row.task,
    )
