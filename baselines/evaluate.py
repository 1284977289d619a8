"""Step 1 of 4: an editor's pictures for a benchmark.

    python -m baselines.evaluate --editor emu3 --model runs/x/sft --vision runs/x/vision --name sft_s \
        --data data/held-out --original-image-key input --edit-instruction instruction --edited-image output \
        --output-dir runs/x/eval/sft_s

The source is brought to `--image-area` pixels and saved as the judge will see it; an editor gets the picture that the
data set has. Writes PNG files and predictions.parquet (`baselines.predictions`); a second call goes on where the
first one stopped. One editor per call, `no-edit` and `ground-truth` included: they are rows of the table, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from baselines.benchmarks.samples import Samples, parquet_files
from baselines.benchmarks.spec import BENCHMARKS, GENERIC, Benchmark
from baselines.editors.fixed import NoEdit, ground_truth
from baselines.editors.names import EDITORS, GROUND_TRUTH, NO_EDIT
from baselines.editors.protocol import Predictor, seen_by
from baselines.predictions import Settings, write_predictions
from emu3.errors import UserError, run_main
from emu3.files import sha256_of


def run(
    *,
    editor: str,
    data: Path,
    output_dir: Path,
    name: str | None = None,
    benchmark: Benchmark = GENERIC,
    model: Path | None = None,
    vision: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    temperature: float = 1.0,
    top_k: int | None = 2048,
    think: bool = False,
    image_area: int = 65536,
) -> Path:
    """Predict a benchmark; returns the path of predictions.parquet.

    `editor` is one of `EDITORS`, `name` its row in the tables (the editor's name if not given), `split` takes the files
    of a folder that are named for it, `limit` the first rows, `think` writes a chain of thought before each picture,
    `image_area` is in pixels. The ground truth leaves out rows without a target. Pictures depend on `seed` and
    `batch_size`. Raises `UserError` on bad input and on an output folder with another run.
    """
    if editor not in EDITORS:
        raise UserError(f"no editor {editor!r}; there are {', '.join(EDITORS)}")
    if batch_size < 1 or image_area < 1 or seed < 0:
        raise UserError(f"batch size and image area are at least 1, the seed 0: {batch_size}, {image_area}, {seed}")
    if limit is not None and limit < 1:
        raise UserError(f"the limit is at least 1: {limit}")
    samples = Samples(benchmark, data, limit, split)
    rows = samples.rows_with_target() if editor == GROUND_TRUTH else list(range(len(samples)))
    if not rows:
        raise UserError(f"no row of {data} has a target picture (column {benchmark.target!r})")
    settings = Settings(
        editor=editor,
        name=name or editor,
        benchmark=benchmark,
        data=fingerprint(parquet_files(data, split)),
        model=fingerprint(_checkpoint_files(model)) if model else None,
        vision=fingerprint(_checkpoint_files(vision)) if vision else None,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        temperature=temperature,
        top_k=top_k,
        think=think,
        image_area=image_area,
    )

    def make_predictor() -> Predictor:
        if editor == GROUND_TRUTH:
            return ground_truth
        if editor == NO_EDIT:
            return seen_by(NoEdit())
        if model is None or vision is None:
            raise UserError(f"editor {editor} needs --model and --vision")
        # Imported here: it brings transformers, which takes seconds that the other editors need not wait.
        from baselines.editors.emu3 import Emu3Editor

        return seen_by(
            Emu3Editor(model, vision, temperature=temperature, top_k=top_k, think=think, image_area=image_area)
        )

    return write_predictions(samples, rows, make_predictor, output_dir, settings)


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents."""
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()


def _checkpoint_files(folder: Path) -> list[Path]:
    files = sorted(file for pattern in ("*.safetensors", "*.json") for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} is no checkpoint folder: it holds neither safetensors nor JSON files")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an editor's pictures for a benchmark.", allow_abbrev=False)
    parser.add_argument("--editor", required=True, choices=EDITORS)
    parser.add_argument("--name", help="the model's row in the tables (default: the editor's name)")
    parser.add_argument("--model", type=Path, help="checkpoint folder of the language model")
    parser.add_argument("--vision", type=Path, help="checkpoint folder of the vision tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="a Parquet file or a folder of them")
    parser.add_argument("--benchmark", default=GENERIC.name, choices=BENCHMARKS, help="column names to begin with")
    parser.add_argument("--original-image-key", dest="source", help="column of the source picture")
    parser.add_argument(
        "--edit-instruction-key", "--edit-instruction", dest="instruction", help="column of the instruction"
    )
    parser.add_argument("--edited-image-key", "--edited-image", dest="target", help="column of the target picture")
    parser.add_argument("--task-key", dest="task", help="column of the task")
    parser.add_argument("--id-key", dest="id", help="column of the id (default: the row number)")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--split", help="take the files of a folder that are named for it, such as test-00000.parquet")
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=2048, help="0 is all")
    parser.add_argument("--think", action="store_true", help="write a chain of thought before each picture")
    parser.add_argument("--image-area", type=int, default=65536, help="pixels of the pictures that the judge sees")
    options = vars(parser.parse_args())
    columns = {key: options.pop(key) for key in ("source", "instruction", "target", "task", "id")}
    given = {key: column for key, column in columns.items() if column is not None}
    options["benchmark"] = dataclasses.replace(BENCHMARKS[options["benchmark"]], **given)
    options["top_k"] = options["top_k"] or None
    print(run(**options))


if __name__ == "__main__":
    run_main(main)
