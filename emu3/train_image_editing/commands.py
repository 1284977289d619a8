"""The work of one of several workers.

transformers' parser makes the flags; its own usage text for a wrong one is two hundred lines long, here it is one line.

A dataset of codes is cut into shards of `shard_rows` input rows; shard k belongs to worker k modulo the number of
workers, which are plain processes that know nothing of each other (torchrun and `emu3.launch` set RANK and
WORLD_SIZE). The worker that finds every shard there writes the manifest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emu3.train_image_editing.arguments import WorkerArguments
from emu3.train_image_editing.shard_writer import ShardWriter


class Worker:
    """One worker's share of a dataset. parts: by shard, the rows that this worker has still to do.

    rows: what stands for the input rows, in order. settings: what decides the content of the shards.
    vision: the vision tokenizer, a folder or Hub id, if it is known.
    Raises UserError if the folder holds shards of other settings.
    """

    def __init__(
        self,
        arguments: WorkerArguments,
        settings: Mapping[str, Any],
        rows: np.ndarray | Sequence[str],
        vision: str | None,
    ) -> None:
        size, shards = arguments.shard_rows, -(-len(rows) // arguments.shard_rows)
        self._arguments = arguments
        self._writer = ShardWriter(Path(arguments.output_path), settings, shards, vision)
        self._share = range(arguments.rank, shards, arguments.world_size)
        missing = [index for index in self._share if not self._writer.finished(index)]
        self.parts: dict[int, Any] = {index: rows[index * size : (index + 1) * size] for index in missing}
        self.rows = sum(map(len, self.parts.values()))
        self.write = self._writer.write

    def progress(self, total: int, unit: str) -> tqdm:
        """A progress bar, where there is work."""
        return tqdm(
            total=total,
            unit=unit,
            desc=f"worker {self._arguments.rank}",
            position=int(os.environ.get("LOCAL_RANK", "0")),
            mininterval=0.5 if sys.stderr.isatty() else 30,
            disable=not self.parts,
        )

    def finish(self, worked: str) -> tuple[dict[str, Any] | None, str]:
        """The manifest once all shards are there, else None; and a line about the work. worked: what it took.

        Raises UserError if not one row could be used.
        """
        manifest = self._writer.finish()
        written, there = len(self.parts), len(self._share) - len(self.parts)
        done = f"worker {self._arguments.rank}: {worked}{written} shards written, {there} were there"
        if manifest is None:
            return None, f"{done}; other workers are not finished, no manifest yet"
        return manifest, f"{done}; {self._arguments.output_path} is complete: {manifest['rows']} rows"
