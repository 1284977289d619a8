"""What 8 and 4 bits per weight, and bfloat16, cost a model of the embedded world: scores, codes, seconds, memory.

    python -m dev.quantized --run runs/quickstart            a quickstart's GRPO model, some minutes of one core

A Markdown table: the share of cells whose greedy code is that of float32; the verifier's scores of one sample of each
held-out edit, same seeds, and their differences to float32, with 95% intervals by bootstrap; seconds of the processor
for one edit alone, the median of ten; the most that a process of its own held in main memory for these, libraries
included.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from PIL import Image

from dev.speed.measure import machine
from emu3.errors import run_main

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit, float32": {"dtype": "float32", "quantization": "8bit"},
    "4bit, float32": {"dtype": "float32", "quantization": "4bit"},
    "4bit, bfloat16": {"dtype": "bfloat16", "quantization": "4bit"},
}
KINDS = ("simple", "complex")
ALONE, RESAMPLES = 10, 10_000


def measure(run: Path, model: str, rows: int, dtype: str, quantization: Any = None) -> dict[str, Any]:
    """Of one setting, in this process: greedy codes (N, cells) and scores (N,) of `rows` held-out edits of each kind,
    seconds, gigabytes."""
    import pyarrow.parquet as pq
    import torch

    from emu3.mllm.editor import Editor
    from emu3.tokenizer.images import read_image

    torch.set_num_threads(1)
    editor = Editor.from_pretrained(
        run / model / "final", run / "vision", device="cpu", dtype=getattr(torch, dtype), quantization=quantization
    )
    table = pq.read_table(run / "data/held_out.parquet").to_pylist()
    table = [row for kind in KINDS for row in [row for row in table if row["split"] == kind][:rows]]
    images = [read_image(io.BytesIO(row["input"]["bytes"]), row["id"]) for row in table]
    words = [row["instruction"] for row in table]
    took = []
    for image, instruction in zip(images[:ALONE], words, strict=False):
        start = process_time()
        editor.edit(image, instruction)
        took.append(process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    requests = editor._requests(images, words, 1, 0, False, editor.image_area, range(len(images)))
    codes = [group[0].codes.ravel().tolist() for group in editor._sample(requests, 0.0, None, 0)]
    edits = [edited.image for [edited] in editor.edit(images, words)]
    return {
        "codes": codes,
        "scores": [_score(*row) for row in zip(words, images, edits, strict=True)],
        "seconds": median(took),
        "peak": peak,
    }


def _score(instruction: str, source: Image.Image, edited: Image.Image) -> float:
    """The verifier's, as VIEScore joins it: sqrt(SC * PQ), each the smaller of two."""
    from shapes.verifier import judge_edit, judge_quality

    return math.sqrt(min(judge_edit(instruction, source, edited).scores) * min(judge_quality(edited).scores))


def shown(values: np.ndarray, form: str = ".2f") -> str:
    """Mean and 95% interval."""
    drawn = values[np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{values.mean():{form}} [{low:{form}}, {high:{form}}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.quantized", description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="folder of a quickstart")
    parser.add_argument("--model", default="sft_s__rl_sc", help="of that run (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=500, help="held-out edits of each kind (default: %(default)s)")
    parser.add_argument("--setting", choices=SETTINGS, help="measure this one and print it as JSON")
    options = parser.parse_args()
    if options.setting:
        print(json.dumps(measure(options.run, options.model, options.rows, **SETTINGS[options.setting])))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in SETTINGS:  # each in a process of its own: the peak of memory is a process's
        command = [sys.executable, "-m", "dev.quantized", *sys.argv[1:], "--setting", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    print("| | equal greedy codes | simple | difference | complex | difference | s per edit | peak, GB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    exact = found["float32"]
    for name, one in found.items():
        cells = [shown((np.array(one["codes"]) == np.array(exact["codes"])).mean(axis=1), ".3f")]
        scores, before = np.array(one["scores"]).reshape(2, -1), np.array(exact["scores"]).reshape(2, -1)
        for mine, plain in zip(scores, before, strict=True):
            cells += [shown(mine), shown(mine - plain, "+.2f") if one is not exact else ""]
        print(f"| {name} | {' | '.join(cells)} | {one['seconds']:.2f} | {one['peak']:.2f} |")
    print(f"\nn = {options.rows} of each kind; {machine()['date']}, {machine()['device']}, one thread")


if __name__ == "__main__":
    run_main(main)
