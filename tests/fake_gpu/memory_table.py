"""The estimate of memory beside what was traced, as a table.

    PYTHONPATH=. python tests/fake_gpu/memory_table.py assets/memory.md

writes it anew. Needs g++ and DeepSpeed, no GPU; takes a minute of one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEXT = """# Memory: counted and traced

Written by `PYTHONPATH=. python tests/fake_gpu/memory_table.py assets/memory.md`; `tests/fake_gpu` holds the first
numbers within 5% of the second. GB are 10^9 bytes.

## One micro-batch at 8B shapes

32 layers (8 where a row says so), hidden 4096, 32 and 8 heads, ffn 14336, 184,622 ids, bfloat16, gradient
checkpointing; prompts of 1,100 tokens and completions of 1,063, chains of thought of 512. Above the weights; gradients
of weights are freed as soon as they are whole. The real modules on fake CUDA tensors: no kernel ran, and what kernels
take inside is not in it.

{passes}
## What DeepSpeed holds

On each of two ranks (gloo, CPU) of a policy of 9.6 million parameters in bfloat16, in buckets of a million elements,
all that DeepSpeed and a step keep and make. What is offloaded lies in the same memory here.

{shards}"""


def passes(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of `passes.py`, run in a process of its own."""
    return _rows([str(HERE / "passes.py"), *names])


def shards() -> list[dict[str, Any]]:
    """Rows of `shards.py`, run on two ranks."""
    return _rows(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(HERE / "shards.py")])


def _rows(command: Sequence[str]) -> list[dict[str, Any]]:
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def table(rows: Sequence[dict[str, Any]], digits: int) -> str:
    lines = ["| | counted, GB | traced, GB | |", "|---|---|---|---|"]
    for row in rows:
        numbers = " | ".join(f"{row[key] / 1e9:.{digits}f}" for key in ("counted", "traced"))
        lines.append(f"| {row['name']} | {numbers} | {row['counted'] / row['traced'] - 1:+.1%} |")
    return "\n".join(lines) + "\n"


def page(pass_rows: Sequence[dict[str, Any]], shard_rows: Sequence[dict[str, Any]]) -> str:
    return TEXT.format(passes=table(pass_rows, 2), shards=table(shard_rows, 4))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(passes(), shards()))
