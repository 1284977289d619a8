"""Tokenise a data set of edits: rows with images in, Parquet shards of codes out.

    python -m emu3.train_image_editing.prepare_data --dataset-name pairs.parquet --source local --output-path out \\
        --model-path VISION --original-image-key input --edited-image-key output --edit-instruction-key instruction

The rows are cut into shards of `--shard-rows`; shard k belongs to worker k modulo the number of workers, which are
plain processes that know nothing of each other (torchrun and `emu3.launch` set RANK and WORLD_SIZE). A shard depends
on its rows alone, so a restarted run skips what is there, with any number of workers, and ends with the same bytes;
a folder that was begun with other settings or other data is refused. Pictures are encoded in float32, since half
precision changes codes. A row that cannot be used is recorded with its reason; the worker that finds every shard
there writes the manifest.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from emu3.errors import UserError, run_main
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing.encode_rows import RowEncoder
from emu3.train_image_editing.flags import parse_flags
from emu3.train_image_editing.image_rows import Columns
from emu3.train_image_editing.open_rows import RowSource, open_rows
from emu3.train_image_editing.shards import ShardWriter

RESIZE_RULE = "aspect kept, area in whole pixels, not cropped; codes of whole cells (emu3.tokenizer.images)"
BOX_RULE = "[x1, y1, x2, y2] in pixels of the resized source (emu3.train_image_editing.encode_rows)"


def _option(default: Any, text: str, *aliases: str) -> Any:
    return field(default=default, metadata={"help": text, "aliases": list(aliases)})


@dataclass(frozen=True)
class PrepareArguments:
    """What the command takes; the flags are these names with dashes."""

    dataset_name: str = field(
        metadata={
            "help": "Hub id or id@revision; or a Parquet file, a folder of them, an image folder with a JSONL file"
        }
    )
    output_path: str = field(metadata={"help": "folder for shards and manifest"})
    model_path: str = _option("BAAI/Emu3-VisionTokenizer", "vision tokenizer: a folder, Hub id or id@revision")
    original_image_key: str = _option("source_image", "column of the source image")
    edit_instruction_key: str = _option("instruction", "column of the instruction", "--edit-instruction")
    edited_image_key: str | None = _option(None, "column of the target image, if there is one", "--edited-image")
    cot_keys: list[str] = field(
        default_factory=list,
        metadata={"help": "columns of reasoning text; boxes in it are rescaled", "aliases": ["--CoT-keys"]},
    )
    id_key: str | None = _option(None, "column of the row's id; default: its number")
    task_key: str | None = _option(None, "column of the kind of edit")
    source: Literal["HF", "local"] = _option("HF", "where the data set is")
    split: str | None = _option(None, "files whose path names it; default: train on the Hub, all of a folder")
    image_area: int = _option(65536, "pixels of a resized image")
    random_seed: int | None = _option(None, "--limit takes rows at random by this seed; default: the first")
    limit: int | None = _option(None, "use this many rows at most")
    shard_rows: int = _option(4096, "input rows of one shard, the most that a worker that is killed loses")
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
    chosen = chosen_rows(len(rows), arguments.random_seed, arguments.limit)
    codec = _codec(arguments)
    if arguments.image_area < codec.factor**2:
        raise UserError(f"--image-area {arguments.image_area} is less than one code of {codec.factor}x{codec.factor}")
    shards = -(-len(chosen) // arguments.shard_rows)
    writer = ShardWriter(Path(arguments.output_path), _settings(arguments, rows, codec.factor), shards)
    mine = range(arguments.rank, shards, arguments.world_size)
    missing = [index for index in mine if not writer.finished(index)]
    parts = {index: chosen[index * arguments.shard_rows : (index + 1) * arguments.shard_rows] for index in missing}

    encoder = RowEncoder(rows, columns, codec, arguments.image_area)
    images = encoder.images_per_row * sum(map(len, parts.values()))
    start = time.perf_counter()
    with tqdm(
        total=images,
        unit="image",
        desc=f"worker {arguments.rank}",
        position=int(os.environ.get("LOCAL_RANK", "0")),
        mininterval=0.5 if sys.stderr.isatty() else 30,
        disable=not missing,
    ) as bar:
        for index, edits, failed in encoder.shards(parts, bar.update):
            writer.write(index, edits, failed)
    seconds = time.perf_counter() - start

    manifest = writer.finish()
    worked = f"{images} images in {seconds:.0f} s, {images / seconds:.1f} images/s" if missing else "nothing to do"
    print(_summary(arguments, len(mine), len(missing), worked, manifest), flush=True)
    return manifest


def chosen_rows(rows: int, seed: int | None, limit: int | None) -> np.ndarray:
    """Numbers of the rows to tokenise, ascending, int64: the first, or those that `datasets`' shuffle puts first."""
    if seed is None:
        return np.arange(rows)[:limit]
    return np.sort(np.random.default_rng(seed).permutation(rows)[:limit])


def _check(arguments: PrepareArguments) -> None:
    if arguments.shard_rows < 1 or (arguments.limit is not None and arguments.limit < 1):
        raise UserError("--shard-rows and --limit must be at least 1")
    if not 0 <= arguments.rank < arguments.world_size:
        raise UserError(f"--rank {arguments.rank} is not below --world-size {arguments.world_size}")


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


def _summary(arguments: PrepareArguments, mine: int, written: int, worked: str, manifest: dict[str, Any] | None) -> str:
    done = f"worker {arguments.rank}: {worked}; {written} shards written, {mine - written} were there"
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
