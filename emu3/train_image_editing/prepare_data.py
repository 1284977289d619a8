"""Tokenize a dataset of edits: rows with images in, Parquet shards of codes out.

    python -m emu3.train_image_editing.prepare_data --data pairs.parquet --source local --output out \\
        --vision VISION --original-image-key input --edited-image-key output --edit-instruction-key instruction

Any number of workers share the work (`commands.Worker`). A shard depends on its rows alone, so a restarted run skips
what is there, with any number of workers, and ends with the same bytes; a folder that was begun with other settings or
other data is refused. Images are encoded in float32, since half precision changes codes. A row that cannot be used is
recorded with its reason.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu3.errors import UserError, run_main
from emu3.extensions import source_digests
from emu3.run_folder import owned
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing.arguments import PrepareArguments, parse_prepare
from emu3.train_image_editing.commands import Worker
from emu3.train_image_editing.encode_rows import RowEncoder
from emu3.train_image_editing.image_rows import Columns
from emu3.train_image_editing.open_rows import open_rows
from emu3.train_image_editing.row_files import RowSource

RESIZE_RULE = "aspect kept, area in whole pixels, not cropped; codes of whole cells (emu3.tokenizer.images)"
BOX_RULE = "[x1, y1, x2, y2] in pixels of the resized source (emu3.train_image_editing.encode_rows)"


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


def main() -> None:
    arguments = parse_prepare()
    with owned(Path(arguments.output_path), (arguments.rank, arguments.world_size)):
        prepare(arguments)


if __name__ == "__main__":
    run_main(main)
