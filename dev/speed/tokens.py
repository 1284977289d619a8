"""What happens around the tokenizer: codes to ids and back, and pairs on the disk, against the published ways."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiktoken
import torch

from dev.speed.measure import Speed, seconds
from emu3.mllm.grammar import GridGrammar
from emu3.mllm.grid_ids import grid_to_ids, ids_to_grid
from emu3.mllm.layout import TokenLayout
from emu3.mllm.text_tokenizer import SPLIT_PATTERN
from emu3.train_image_editing.shards import EditRow, ShardWriter

GRID = (32, 32)
PAIRS = 512
OFTEN = 20  # calls in a turn: one alone is over before the caches are warm
INSTRUCTION = "replace the red apple on the table with a green pear"
_VISUAL = re.compile(r"<\|visual token (\d+)\|>")


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
    grids = rng.integers(0, 32_768, (PAIRS, 2, *GRID), dtype=np.uint16)
    rows = [EditRow(str(i), source, edited, INSTRUCTION, {}, None) for i, (source, edited) in enumerate(grids)]
    published = io.BytesIO()
    source, edited = grids[0].astype(np.int64)
    record = {"edit_id": "0.pth", "original_image": source, "edited_image": edited, "CoT": {}}
    torch.save(record | {"instruction": INSTRUCTION}, published)
    with tempfile.TemporaryDirectory() as folder:
        ShardWriter(Path(folder), {}, shards=1).write(0, rows, [])
        ours = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet")) / PAIRS
    return [Speed("shard_bytes", ours, len(published.getvalue()), "bytes", 4.0, "one published .pth file per pair")]
