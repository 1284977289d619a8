"""Turn published tokenised data, one `.pth` file per edit, into shards of codes.

    python -m emu3.train_image_editing.convert_published --data OUT --output-path data/omniedit --model-path VISION
    python -m emu3.launch --ranks 8 emu3.train_image_editing.convert_published --data OUT ...    # on 8 processes

Shards, manifest, workers and restarts are those of `prepare_data`. A file that cannot be used is recorded in the
manifest with its reason and counted, and never stops the run.

`vision_sha256` is that of `--model-path`, the vision tokenizer of which you know that the codes are its own; without
it the manifest says null. Data of an unknown tokenizer are not mixed with data of a known one, and GRPO refuses them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emu3.archives import unpack
from emu3.errors import UserError, run_main
from emu3.mllm.layout import TokenLayout
from emu3.tokenizer.config import StillVQConfig
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing.flags import parse_flags
from emu3.train_image_editing.published_data import Grids, PublishedEdits, open_published, read_edit
from emu3.train_image_editing.published_pickle import BadFile
from emu3.train_image_editing.shards import EditRow, FailedRow, ShardWriter


@dataclass(frozen=True)
class ConvertArguments:
    """What the command takes; the flags are these names with dashes."""

    data: str = field(metadata={"help": "OUT, the folder with list/ and the .pth files, or the list itself"})
    output_path: str = field(metadata={"help": "folder for shards and manifest"})
    archive: str | None = field(default=None, metadata={"help": "tar or zip to unpack as --data, unless that is there"})
    model_path: str | None = field(default=None, metadata={"help": "vision tokenizer that the codes are from"})
    image_area: int = field(default=65536, metadata={"help": "pixels of the images that were tokenised"})
    shard_rows: int = field(default=4096, metadata={"help": "files of one shard"})
    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", "0")), metadata={"help": "this worker"})
    world_size: int = field(
        default_factory=lambda: int(os.environ.get("WORLD_SIZE", "1")), metadata={"help": "number of workers"}
    )


def convert(arguments: ConvertArguments) -> dict[str, Any] | None:
    """Write this worker's shards. Returns the manifest once all shards are there, else None.

    Raises UserError for missing or other data, an output folder of another run, and if no file at all can be used.
    """
    _check(arguments)
    if arguments.archive is not None and not Path(arguments.data).exists():
        unpack(Path(arguments.archive), Path(arguments.data))
    edits = open_published(Path(arguments.data))
    grids, digest = _vision(arguments)
    shards = -(-len(edits.names) // arguments.shard_rows)
    writer = ShardWriter(Path(arguments.output_path), _settings(arguments, edits, grids, digest), shards)
    mine = range(arguments.rank, shards, arguments.world_size)
    missing = [index for index in mine if not writer.finished(index)]
    parts = {index: edits.names[index * arguments.shard_rows : (index + 1) * arguments.shard_rows] for index in missing}

    with tqdm(
        total=sum(map(len, parts.values())),
        unit="file",
        desc=f"worker {arguments.rank}",
        position=int(os.environ.get("LOCAL_RANK", "0")),
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:
        for index, names in parts.items():
            rows: list[EditRow] = []
            failed: list[FailedRow] = []
            for name in names:
                try:
                    rows.append(read_edit(edits.folder, name, grids))
                except BadFile as reason:
                    failed.append(FailedRow(name if name.isprintable() else ascii(name), str(reason)))
                bar.update()
            writer.write(index, rows, failed)

    manifest = writer.finish()
    print(_summary(arguments, edits, len(mine), len(missing), manifest), flush=True)
    return manifest


def _check(arguments: ConvertArguments) -> None:
    if arguments.shard_rows < 1:
        raise UserError("--shard-rows must be at least 1")
    if not 0 <= arguments.rank < arguments.world_size:
        raise UserError(f"--rank {arguments.rank} is not below --world-size {arguments.world_size}")
    if arguments.archive is not None and arguments.world_size > 1:
        raise UserError("one worker unpacks an archive: call this once without emu3.launch, or unpack it first")


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


def _summary(
    arguments: ConvertArguments, edits: PublishedEdits, mine: int, written: int, manifest: dict[str, Any] | None
) -> str:
    done = f"worker {arguments.rank}: {written} shards written, {mine - written} were there"
    if manifest is None:
        return f"{done}; other workers are not finished, no manifest yet"
    failed = manifest["failed"]
    lines = [f"{done}; {arguments.output_path} is complete: {manifest['rows']} rows, {len(failed)} bad files"]
    if failed:
        lines.append(f"the bad files are in manifest.json; the first is {failed[0]['id']}: {failed[0]['why']}")
    if edits.repeats:
        lines.append(f"the list names {edits.repeats} files again, which were taken once")
    if arguments.model_path is None:
        lines.append(
            "vision tokenizer unknown (no --model-path): train on these data only with data of the same source"
        )
    return "\n".join(lines)


def main() -> None:
    [arguments] = parse_flags([ConvertArguments], __doc__)
    convert(arguments)


if __name__ == "__main__":
    run_main(main)
