"""Tokenise a data set of edits: rows with images in, Parquet shards of codes out.

    python -m emu3.train_image_editing.prepare_data --dataset-name pairs.parquet --source local --output-path out \\
        --model-path VISION --original-image-key input --edited-image-key output --edit-instruction-key instruction

The rows are cut into shards of `--shard-rows`; shard k belongs to worker k modulo the number of workers (`torchrun`
sets RANK and WORLD_SIZE). A shard depends on its rows alone, so a restarted run skips what is there, with any
number of workers, and ends with the same bytes. Images are decoded on threads while others are encoded, always in
float32 (half precision changes codes), and a picture that several rows of a batch share is encoded once. A row that
cannot be used is recorded with its reason; the worker that finds every shard there writes the manifest.

Left out: rescaling of pixel coordinates inside reasoning texts.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from emu3.errors import UserError, run_main
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.images import fit_image
from emu3.tokenizer.model import StillVQ, weights_digest
from emu3.train_image_editing.flags import parse_flags
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageRow, read_row, row_id
from emu3.train_image_editing.open_rows import open_rows
from emu3.train_image_editing.shards import EditRow, FailedRow, ShardWriter

BATCH_ROWS = 32
DECODE_THREADS = min(8, os.cpu_count() or 1)
RESIZE_RULE = "aspect kept, area in pixels, sides cropped to multiples of the factor (emu3.tokenizer.images)"


def _option(default: Any, text: str, *aliases: str) -> Any:
    return field(default=default, metadata={"help": text, "aliases": list(aliases)})


@dataclass(frozen=True)
class PrepareArguments:
    """What the command takes; the flags are these names with dashes."""

    dataset_name: str = field(metadata={"help": "Hub id, or a local Parquet file or folder"})
    output_path: str = field(metadata={"help": "folder for shards and manifest"})
    model_path: str = field(metadata={"help": "vision tokenizer folder"})
    original_image_key: str = _option("source_image", "column of the source image")
    edit_instruction_key: str = _option("instruction", "column of the instruction", "--edit-instruction")
    edited_image_key: str | None = _option(None, "column of the target image, if there is one", "--edited-image")
    cot_keys: list[str] = field(
        default_factory=list, metadata={"help": "columns of reasoning text", "aliases": ["--CoT-keys"]}
    )
    id_key: str | None = _option(None, "column of the row's id; default: its number")
    task_key: str | None = _option(None, "column of the kind of edit")
    source: Literal["HF", "local"] = _option("HF", "where the data set is")
    split: str | None = _option(None, "split; default: train on the Hub, all files of a folder")
    image_area: int = _option(65536, "pixels of a resized image")
    random_seed: int | None = _option(None, "shuffle the rows by this seed before --limit; default: keep their order")
    limit: int | None = _option(None, "use this many rows at most")
    shard_rows: int = _option(4096, "input rows of one shard")
    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", "0")), metadata={"help": "this worker"})
    world_size: int = field(
        default_factory=lambda: int(os.environ.get("WORLD_SIZE", "1")), metadata={"help": "number of workers"}
    )


def prepare(arguments: PrepareArguments) -> dict[str, Any] | None:
    """Write this worker's shards. Returns the manifest once all shards are there, else None.

    Raises UserError for a missing data set, column or vision tokenizer, for an output folder of another run, and
    if no row at all can be used.
    """
    _check(arguments)
    columns = Columns(
        source=arguments.original_image_key,
        instruction=arguments.edit_instruction_key,
        edited=arguments.edited_image_key,
        cot=tuple(arguments.cot_keys),
        id=arguments.id_key,
        task=arguments.task_key,
    )
    rows = open_rows(arguments.dataset_name, arguments.source, arguments.split, columns)
    order = row_order(len(rows), arguments.random_seed, arguments.limit)
    codec = _codec(arguments.model_path)
    if arguments.image_area < codec.factor**2:
        raise UserError(f"--image-area {arguments.image_area} is less than one code of {codec.factor}x{codec.factor}")
    shards = -(-len(order) // arguments.shard_rows)
    writer = ShardWriter(Path(arguments.output_path), _settings(arguments, len(rows), codec.factor), shards)
    mine = range(arguments.rank, shards, arguments.world_size)
    missing = [index for index in mine if not writer.finished(index)]
    parts = {index: order[index * arguments.shard_rows : (index + 1) * arguments.shard_rows] for index in missing}

    reader = _Reader(rows, columns, arguments.image_area, codec.factor)
    images_per_row = 1 if columns.edited is None else 2
    total = images_per_row * sum(len(part) for part in parts.values())
    with tqdm(total=total, unit="image", desc=f"worker {arguments.rank}", position=arguments.rank) as bar:
        for index, part in parts.items():
            edits: list[EditRow] = []
            failed: list[FailedRow] = []
            for batch in reader.batches(part):
                failed += [row for row in batch if isinstance(row, FailedRow)]
                edits += encode([row for row in batch if isinstance(row, ImageRow)], codec)
                bar.update(images_per_row * len(batch))
            writer.write(index, edits, failed)

    manifest = writer.finish()
    print(_summary(arguments, len(mine), len(missing), manifest), flush=True)
    return manifest


def row_order(rows: int, seed: int | None, limit: int | None) -> np.ndarray:
    """Numbers of the rows to tokenise, int64. With a seed the permutation is that of `datasets.Dataset.shuffle`."""
    order = np.arange(rows) if seed is None else np.random.default_rng(seed).permutation(rows)
    return order[:limit]


def encode(rows: Sequence[ImageRow], codec: ImageCodec) -> list[EditRow]:
    """Turn the pictures of `rows` into codes, each different picture once."""
    pictures: dict[str, Image.Image] = {}
    for row in rows:
        pictures[row.source_digest] = row.source
        if row.edited is not None and row.edited_digest is not None:
            pictures[row.edited_digest] = row.edited
    codes = dict(zip(pictures, codec.encode(list(pictures.values())), strict=True))
    return [
        EditRow(
            id=row.id,
            source=codes[row.source_digest],
            edited=None if row.edited_digest is None else codes[row.edited_digest],
            instruction=row.instruction,
            cot=row.cot,
            task=row.task,
        )
        for row in rows
    ]


class _Reader:
    """Decodes and resizes rows on threads, ahead of the encoder."""

    def __init__(self, rows: datasets.Dataset, columns: Columns, area: int, factor: int) -> None:
        self.rows = rows
        self.columns = columns
        self.area = area
        self.factor = factor

    def batches(self, indices: np.ndarray) -> Iterator[list[ImageRow | FailedRow]]:
        """Batches in the order of `indices`; a row that cannot be used comes as a FailedRow."""
        waiting: deque[Future[ImageRow | FailedRow]] = deque()
        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            for index in indices:
                values = self.rows[int(index)]
                waiting.append(pool.submit(self._read, values, int(index)))
                if len(waiting) == 2 * BATCH_ROWS:
                    yield [waiting.popleft().result() for _ in range(BATCH_ROWS)]
            while waiting:
                yield [waiting.popleft().result() for _ in range(min(BATCH_ROWS, len(waiting)))]

    def _read(self, values: dict[str, Any], index: int) -> ImageRow | FailedRow:
        try:
            row = read_row(values, self.columns, index)
            edited = None if row.edited is None else self._fit(row.edited)
            return replace(row, source=self._fit(row.source), edited=edited)
        except BadRow as reason:
            return FailedRow(row_id(values, self.columns, index), str(reason))

    def _fit(self, image: Image.Image) -> Image.Image:
        try:
            return fit_image(image, self.area, self.factor)
        except UserError as error:
            raise BadRow(str(error)) from error


def _check(arguments: PrepareArguments) -> None:
    if arguments.shard_rows < 1 or (arguments.limit is not None and arguments.limit < 1):
        raise UserError("--shard-rows and --limit must be at least 1")
    if not 0 <= arguments.rank < arguments.world_size:
        raise UserError(f"--rank {arguments.rank} is not below --world-size {arguments.world_size}")


def _codec(folder: str) -> ImageCodec:
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return ImageCodec(StillVQ.from_pretrained(folder, dtype=torch.float32), device)


def _settings(arguments: PrepareArguments, rows: int, factor: int) -> dict[str, Any]:
    """What decides the content of the shards, for the manifest and for refusing to mix two runs in one folder."""
    return {
        "image_area": arguments.image_area,
        "factor": factor,
        "vision_sha256": weights_digest(arguments.model_path),
        "dtype": "float32",
        "resize": RESIZE_RULE,
        "data": {
            "name": arguments.dataset_name,
            "split": arguments.split,
            "rows": rows,
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


def _summary(arguments: PrepareArguments, mine: int, written: int, manifest: dict[str, Any] | None) -> str:
    done = f"worker {arguments.rank}: {written} shards written, {mine - written} were there"
    if manifest is None:
        return f"{done}; other workers are not finished, no manifest yet"
    return (
        f"{done}; {arguments.output_path} is complete: {manifest['rows']} rows, {manifest['rows_with_target']} with a "
        f"target, {len(manifest['failed'])} failed"
    )


def main() -> None:
    [arguments] = parse_flags([PrepareArguments], __doc__)
    prepare(arguments)


if __name__ == "__main__":
    run_main(main)
