"""Chains of thought for a dataset of edits: rows with images in, the same rows with a text column out.

    python -m rl.annotate --dataset-name pairs.parquet --source local --output-path data/annotated \\
        --judge-url http://127.0.0.1:8000/v1 --original-image-key input --edited-image-key output
    bash scripts/tokenize.sh --source local --dataset-name data/annotated --cot-keys reasoning_verbose ...

The judge is a vision-language model behind an OpenAI address that counts boxes as Qwen2.5-VL does
(`rl.annotate.steps`). Options are called as those of `prepare_data`, which reads the Parquet files: the columns keep
their names, and `--cot-key` is added. A row whose reply has not the five steps, that cannot be read or has no target,
is left out, recorded with its reason and counted. Call it again after an interruption: nothing is asked twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from emu3.errors import run_main
from emu3.flags import CommandParser
from emu3.settings import COUNT
from rl.annotate.run import AnnotateArguments, annotate
from rl.reward.config import ANNOTATE, add_judge_flags, judge_from_flags


def main() -> None:
    parser = CommandParser(
        old={"--dataset-name": "--data", "--output-path": "--output"},
        description="Write chains of thought for a dataset.",
    )
    usual = AnnotateArguments
    parser.add_argument(
        "--data", dest="dataset_name", required=True, help="Hub id, Parquet file, folder of them, or image folder"
    )
    parser.add_argument("--output", dest="output_path", type=Path, required=True, help="folder of the annotated rows")
    parser.add_argument("--source", choices=("HF", "local"), default=usual.source, help="where the dataset is")
    parser.add_argument("--split", help="files whose path names it")
    parser.add_argument("--original-image-key", default=usual.original_image_key, help="column of the source")
    parser.add_argument(
        "--edited-image-key",
        "--edited-image",
        default=usual.edited_image_key,
        help="column of the target image",
    )
    parser.add_argument(
        "--edit-instruction-key",
        "--edit-instruction",
        default=usual.edit_instruction_key,
        help="column of the instruction",
    )
    parser.add_argument("--id-key", help="column of the row's id (default: its number, in a new column id)")
    parser.add_argument("--task-key", help="column of the kind of edit")
    parser.add_argument("--cot-key", "--CoT-key", default=usual.cot_key, help="column to write")
    parser.add_argument("--limit", type=COUNT, help="take the first rows only")
    parser.add_argument("--image-area", type=COUNT, default=usual.image_area, help="pixels that the judge sees")
    parser.add_argument("--part-rows", type=COUNT, default=usual.part_rows, help="rows of one output file")
    group = parser.add_argument_group("judge")
    add_judge_flags(group, ANNOTATE, required=True, prompts=False)
    group.add_argument(
        "--concurrency", dest="judge_concurrency", type=int, default=argparse.SUPPRESS, help="as --judge-concurrency"
    )
    flags = vars(parser.parse_args())
    judge = judge_from_flags(flags, ANNOTATE)
    assert judge is not None  # its address is required
    arguments = AnnotateArguments(judge=judge, **flags)
    summary = annotate(arguments)
    failed = ", ".join(f"{count} {kind}" for kind, count in summary["failed"].items()) or "none"
    print(f"{arguments.output_path}: {summary['annotated']} rows annotated, left out: {failed}")


if __name__ == "__main__":
    run_main(main)
