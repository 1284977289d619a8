"""What happens around the tokenizer, against the published ways: codes to ids and back, pairs on the disk, and a
dataset end to end, files in, codes on the disk.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken
import torch
from datasets import Dataset, Features, Sequence, Value
from PIL import Image
from transformers import Emu3ImageProcessor, Emu3VQVAE

from dev.speed.measure import Speed, seconds
from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.mllm.sequence import grid_to_ids, ids_to_grid
from emu3.mllm.text_tokenizer import SPLIT_PATTERN, train_ranks
from emu3.tokenizer.images import scale_image
from emu3.tokenizer.random_vision import random_vqvae, save_baai
from emu3.train_image_editing.prepare_data import PrepareArguments, prepare
from emu3.train_image_editing.shard_writer import ShardWriter
from emu3.train_image_editing.shards import EditRow

GRID = (32, 32)
STORED = 512
OFTEN = 20  # calls in a turn: one alone is over before the caches are warm
INSTRUCTION = "replace the red apple on the table with a green pear"
HELD, RANKS = 30_000, 300
_VISUAL = re.compile(r"<\|visual token (\d+)\|>")
TOKENIZED = 8
SIDE = 128
BATCH = 8


# Anonymous memory that a process keeps of a dataset; Arrow gives back what it has freed.
_ROWS = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from dev.speed.measure import process_memory
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.train_image_editing.dataset import EncodedRows
from emu3.train_image_editing.shards import read_rows
who, folder = sys.argv[1], Path(sys.argv[2])
tokenizer = TextTokenizer.from_rank_file(folder / "ranks", 32_768)
EncodedRows(read_rows(folder / "warm"), tokenizer, [], 4096)[0]
before = process_memory("RssAnon")
if who == "ours":
    kept = EncodedRows(read_rows(folder / "data"), tokenizer, [], 4096)
    [kept[index] for index in range(0, len(kept), 100)]
else:
    tables = [pq.read_table(path) for path in sorted((folder / "data").glob("*.parquet"))]
    rows = EncodedRows(read_rows(folder / "data"), tokenizer, [], 4096)
    examples = [rows[index] for index in range(len(rows))]
    kept = [np.concatenate([getattr(one, name) for one in examples]) for name in ("tokens", "changed")]
    kept += [np.array([one.start for one in examples]), np.cumsum([len(one.tokens) for one in examples])]
    del examples, rows
pa.default_memory_pool().release_unused()
print(process_memory("RssAnon") - before)
"""


def codes_and_ids(turns: int) -> list[Speed]:
    """A grid to token ids and back. The published code writes the codes as text for a tokenizer that has a special
    token for each, and reads generated text by a regular expression. Its ranks are left out here but for single bytes:
    a grid has no other text than its size."""
    grammar = GridGrammar(TokenLayout(), *GRID, size_ids=(18, 17, 9, 18, 17))
    codes = np.random.default_rng(0).integers(0, 32_768, GRID)
    grid = codes.tolist()
    names = [f"<|visual token {code:06d}|>" for code in range(32_768)]
    structure = ["<|image start|>", "<|image token|>", "<|image end|>", "<|extra_200|>", "<|extra_201|>"]
    specials = {name: 256 + index for index, name in enumerate([*structure, *names])}
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = tiktoken.Encoding("bytes", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=specials)

    def ours() -> np.ndarray:
        return ids_to_grid(grammar, grid_to_ids(grammar, codes))

    def peer() -> list[list[int]]:
        rows = "<|extra_200|>".join("".join(names[code] for code in row) for row in grid)
        text = f"<|image start|>32*32<|image token|>{rows}<|extra_200|><|extra_201|><|image end|>"
        written = tokenizer.decode(tokenizer.encode(text, allowed_special="all"))
        return [[int(code) for code in _VISUAL.findall(row)] for row in written.split("<|extra_200|>")[:-1]]

    if ours().tolist() != peer():
        raise AssertionError("the two ways give different grids")

    def often(work: Callable[[], object]) -> Callable[[], None]:
        def turn() -> None:
            for _ in range(OFTEN):
                work()

        return turn

    ours_s, peer_s = (total / OFTEN for total in seconds(often(ours), often(peer), turns))
    peer_is = "text, tiktoken with 32,768 special tokens, regular expression; 32x32"
    return [Speed("codes_vs_strings", ours_s * 1e3, peer_s * 1e3, "ms", 100.0, peer_is)]


def bytes_per_pair() -> list[Speed]:
    """Bytes on the disk of one pair of uniformly random 32x32 grids, the worst case for compression."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 32_768, (STORED, 2, *GRID), dtype=np.uint16)
    rows = [EditRow(str(i), source, edited, INSTRUCTION, {}, None) for i, (source, edited) in enumerate(grids)]
    published = io.BytesIO()
    source, edited = grids[0].astype(np.int64)
    record = {"edit_id": "0.pth", "original_image": source, "edited_image": edited, "CoT": {}}
    torch.save(record | {"instruction": INSTRUCTION}, published)
    with tempfile.TemporaryDirectory() as folder:
        ShardWriter(Path(folder), {}, shards=1).write(0, rows, [])
        ours = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet")) / STORED
    return [Speed("shard_bytes", ours, len(published.getvalue()), "bytes", 4.0, "one published .pth file per pair")]


def rows_memory() -> list[Speed]:
    """Kilobytes of a rank's memory that a pair of 32x32 grids takes during fine-tuning."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_ranks([INSTRUCTION] * 3, RANKS, folder / "ranks")
        for data, count in ("warm", 10), ("data", HELD):
            writer = ShardWriter(folder / data, {}, shards=-(-count // STORED))
            for shard in range(writer.shards):
                grids = rng.integers(0, 32_768, (min(STORED, count - shard * STORED), 2, *GRID), dtype=np.uint16)
                rows = [EditRow(f"{shard}-{i}", one, other, INSTRUCTION) for i, (one, other) in enumerate(grids)]
                writer.write(shard, rows, [])
            writer.finish()

        def held(who: str) -> float:
            command = [sys.executable, "-c", _ROWS, who, name]
            environment = os.environ | {"EARL_CACHE": f"{name}/cache"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            return float(done.stdout) * 1024 / HELD

        peer_is = f"rows held as tables, and as ids of 32 bits encoded at the start; {HELD:,} pairs of 32x32"
        return [Speed("sft_rows_memory", held("ours"), held("peer"), "kB/row", 20.0, peer_is)]


def tokenize(turns: int) -> list[Speed]:
    """Seconds of the processor per pair. The network has the published shape at a quarter of its width, or a turn took
    minutes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        vqvae = random_vqvae(base_channels=64, hidden_size=256)
        save_baai(vqvae, root / "vision")
        _write_pairs(root / "pairs.parquet")
        outputs: Iterator[Path] = (root / f"out-{number}" for number in itertools.count())

        def ours() -> None:
            prepare(
                PrepareArguments(
                    dataset_name=str(root / "pairs.parquet"),
                    source="local",
                    output_path=str(next(outputs)),
                    model_path=str(root / "vision"),
                    original_image_key="input",
                    edited_image_key="output",
                    image_area=SIDE * SIDE,
                )
            )

        def loop() -> None:
            _loop(vqvae, root / "pairs.parquet", next(outputs))

        def mapped() -> None:
            _map(vqvae, root / "pairs.parquet", next(outputs))

        peers = {
            "tokenize_pipeline": (loop, "one image at a time through transformers.Emu3VQVAE, one .pth per pair"),
            "tokenize_datasets": (mapped, f"datasets' map in batches of {BATCH} through transformers.Emu3VQVAE"),
        }
        found = []
        for name, (peer, peer_is) in peers.items():
            ours_s, peer_s = (taken / TOKENIZED for taken in seconds(ours, peer, turns, time.process_time))
            found.append(Speed(name, ours_s, peer_s, "s/pair", None, f"{peer_is}; {SIDE}x{SIDE}"))
    return found


def _write_pairs(path: Path) -> None:
    rng = np.random.default_rng(0)

    def image() -> dict[str, object]:
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((512, 512), Image.Resampling.BICUBIC).save(file, "JPEG")
        return {"bytes": file.getvalue(), "path": None}

    rows = [{"input": image(), "output": image(), "instruction": "make it brighter"} for _ in range(TOKENIZED)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _loop(vqvae: Emu3VQVAE, pairs: Path, output: Path) -> None:
    output.mkdir()
    for number, row in enumerate(pq.read_table(pairs).to_pylist()):
        source, edited = (_encode(vqvae, [row[name]["bytes"]])[0] for name in ("input", "output"))
        record = {"original_image": source, "edited_image": edited, "CoT": {}, "instruction": row["instruction"]}
        torch.save(record, output / f"{number}.pth")


def _map(vqvae: Emu3VQVAE, pairs: Path, output: Path) -> None:
    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: _encode(vqvae, [image["bytes"] for image in rows[name]]) for name in ("input", "output")}

    kind = Features({"bytes": Value("binary"), "path": Value("string")})
    images = Features({"input": kind, "output": kind, "instruction": Value("string")})
    grid = Sequence(Sequence(Value("uint16")))
    codes = Features({"input": grid, "output": grid, "instruction": Value("string")})
    rows = Dataset.from_parquet(str(pairs), features=images, keep_in_memory=True)
    rows.map(encode, batched=True, batch_size=BATCH, features=codes, keep_in_memory=True).save_to_disk(output)


def _encode(vqvae: Emu3VQVAE, files: list[bytes]) -> list[np.ndarray]:
    """Codes of images of one size."""
    processor = Emu3ImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    inputs = processor(
        [scale_image(Image.open(io.BytesIO(data)), SIDE * SIDE, 8) for data in files], return_tensors="pt"
    )
    with torch.no_grad():
        codes = vqvae.encode(inputs["pixel_values"], inputs["image_sizes"]).image_tokens
    return [grid.numpy() for grid in codes]
