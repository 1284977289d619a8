"""Tokenize a dataset of edits: rows with images in, Parquet shards of codes out.

    python -m emu3.train_image_editing.prepare_data --data pairs.parquet --source local --output out \\
        --vision VISION --original-image-key input --edited-image-key output --edit-instruction-key instruction

Any number of workers share the work (`commands.Worker`). A shard depends on its rows alone, so a restarted run skips
what is there, with any number of workers, and ends with the same bytes; a folder that was begun with other settings or
other data is refused. Images are encoded in float32, since half precision changes codes. A row that cannot be used is
recorded with its reason.

One thread reads rows, others decode and resize their images (Pillow frees the interpreter while it does), up to
two windows ahead of the encoder. A window is a stretch of a shard with enough images that those of one size fill
whole batches, sources and targets together, and an image that occurs more than once in a shard is encoded once.
Windows are cut within a shard and nothing is remembered across shards: which images share a batch, and so the
last bits of what the network computes, depends on the shard alone.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu3.boxes import rescale_boxes
from emu3.errors import UserError, run_main
from emu3.extensions import source_digests
from emu3.run_folder import owned
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.images import scale_image
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing.arguments import PrepareArguments, parse_prepare
from emu3.train_image_editing.commands import Worker
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageRow, read_row, row_id
from emu3.train_image_editing.open_rows import open_rows
from emu3.train_image_editing.row_files import RowSource
from emu3.train_image_editing.shard_writer import FailedRow
from emu3.train_image_editing.shards import EditRow

RESIZE_RULE = "aspect kept, area in whole pixels, not cropped; codes of whole cells (emu3.tokenizer.images)"
BOX_RULE = "[x1, y1, x2, y2] in pixels of the resized source (emu3.train_image_editing.prepare_data)"
WINDOW_PIXELS = 2**25  # resized, about 100 MB of RGB; a source and a target for each row
WINDOWS_AHEAD = 2
DECODE_THREADS = min(8, os.cpu_count() or 1)
IMAGES_PER_TICK = 64


def prepare(arguments: PrepareArguments) -> dict[str, Any] | None:
    """Write this worker's shards. Returns the manifest once all shards are there, else None.

    Raises UserError for a missing dataset, column or vision tokenizer, for an output folder of another run, and
    if no row at all can be used.
    """
    columns = Columns(
        source=arguments.original_image_key,
        instruction=arguments.edit_instruction_key,
        edited=arguments.edited_image_key,
        cot=tuple(arguments.cot_keys),
        id=arguments.id_key,
        task=arguments.task_key,
    )
    rows = open_rows(
        arguments.dataset_name,
        arguments.source,
        arguments.split,
        columns,
        config=arguments.config_name,
        data_files=arguments.data_files,
        limit=arguments.limit if arguments.random_seed is None else None,
    )
    chosen = chosen_rows(len(rows), arguments.random_seed, arguments.limit)
    codec = _codec(arguments)
    if arguments.image_area < codec.factor**2:
        raise UserError(f"--image-area {arguments.image_area} is less than one code of {codec.factor}x{codec.factor}")
    worker = Worker(arguments, _settings(arguments, rows, codec.factor), chosen, arguments.model_path)
    encoder = RowEncoder(rows, columns, codec, arguments.image_area)
    images = encoder.images_per_row * worker.rows
    start = time.perf_counter()
    with worker.progress(images, "image") as bar:
        for index, edits, failed in encoder.shards(worker.parts, bar.update):
            worker.write(index, edits, failed)
    seconds = time.perf_counter() - start

    rate = f"{images} images in {seconds:.0f} s, {images / seconds:.1f} images/s" if worker.parts else "nothing to do"
    manifest, summary = worker.finish(f"{rate}; ")
    if manifest is not None:
        summary += f", {manifest['rows_with_target']} with a target, {len(manifest['failed'])} failed"
    print(summary, flush=True)
    return manifest


def chosen_rows(rows: int, seed: int | None, limit: int | None) -> np.ndarray:
    """Numbers of the rows to tokenize, ascending, int64: the first, or those that `datasets`' shuffle puts first."""
    if seed is None:
        return np.arange(rows)[:limit]
    return np.sort(np.random.default_rng(seed).permutation(rows)[:limit])


def _codec(arguments: PrepareArguments) -> ImageCodec:
    local_rank = int(os.environ.get("LOCAL_RANK", arguments.rank))
    gpus = torch.cuda.device_count()
    device = f"cuda:{local_rank % gpus}" if gpus else "cpu"
    return ImageCodec(StillVQ.from_pretrained(arguments.model_path, torch.float32, parts="encoder"), device)


def _settings(arguments: PrepareArguments, rows: RowSource, factor: int) -> dict[str, Any]:
    """What decides the content of the shards, for the manifest and for refusing to mix two runs in one folder."""
    return {
        "image_area": arguments.image_area,
        "factor": factor,
        "vision_sha256": weights_digest(arguments.model_path),
        "dtype": "float32",
        "resize": RESIZE_RULE,
        "boxes": BOX_RULE,
        "data": {
            "name": arguments.dataset_name,
            "split": arguments.split,
            **({"config_name": arguments.config_name} if arguments.config_name else {}),
            **({"data_files": arguments.data_files} if arguments.data_files else {}),
            **({"extension": own} if (own := source_digests(arguments.dataset_name)) else {}),
            "rows": len(rows),
            "contents": rows.contents,
            "random_seed": arguments.random_seed,
            "limit": arguments.limit,
            "original_image_key": arguments.original_image_key,
            "edited_image_key": arguments.edited_image_key,
            "edit_instruction_key": arguments.edit_instruction_key,
            "cot_keys": arguments.cot_keys,
            "id_key": arguments.id_key,
            "task_key": arguments.task_key,
        },
        "shard_rows": arguments.shard_rows,
    }


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


def main() -> None:
    arguments = parse_prepare()
    with owned(Path(arguments.output_path), (arguments.rank, arguments.world_size)):
        prepare(arguments)


if __name__ == "__main__":
    run_main(main)
