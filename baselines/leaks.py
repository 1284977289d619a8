"""Whether rows of a benchmark occur in training data: evaluation on what was trained on measures memory.

    python -m baselines.leaks --benchmark vismin --train-data mair-lab/vismin data/tokens/vismin \
        --original-image-key source_image --edited-image-key edited_image --edit-instruction-key edit_instruction

Training data are Parquet files or folders of them, image folders with a JSONL file, Hub ids, and tokenised data sets.
Of the last, pictures cannot be compared, since they are codes of resized pictures: only instructions and, as ids are
those of the original data, ids. Prints what was found, by sample, and what was not looked at; ends with code 0 either
way. `baselines.benchmarks.leak_index` says what "occurs" means.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from baselines.benchmarks.files import find_files
from baselines.benchmarks.known import BENCHMARKS
from baselines.benchmarks.leak_index import (
    ID,
    INSTRUCTION,
    KINDS,
    PAIR,
    PICTURE,
    Finding,
    LeakIndex,
    TrainRow,
    train_rows,
)
from baselines.benchmarks.samples import Samples
from baselines.benchmarks.spec import GENERIC, Benchmark
from emu3.errors import UserError, run_main
from emu3.files import read_json, write_json
from emu3.train_image_editing.image_rows import BadRow, Columns
from emu3.train_image_editing.open_rows import open_rows
from emu3.train_image_editing.shards import MANIFEST

SHOWN = 20
"""Samples that are named on the screen, of each kind; the file has all."""

MEANING = {
    PAIR: "a picture of theirs and their instruction occur in one training row",
    PICTURE: "a picture of theirs occurs, under another instruction",
    ID: "their id occurs",
    INSTRUCTION: "only their instruction occurs, which short ones do by chance",
}


@dataclasses.dataclass
class Compared:
    """One training set. tokenised: its pictures are codes. unreadable: rows with a picture or line nobody can read."""

    name: str
    tokenised: bool
    rows: int = 0
    unreadable: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)


def run(
    *,
    benchmark: Benchmark,
    benchmark_data: str | Path | None = None,
    data_dir: Path | None = None,
    train_data: Sequence[str],
    columns: Columns,
    split: str | None = None,
    output: Path | None = None,
) -> list[Compared]:
    """Compare a benchmark with each of `train_data`; prints the report and writes it to `output` as JSON.

    `columns` are those of the training data with pictures, `split` theirs, too ("train" on the Hub if not given).
    Raises `UserError` for data that are not there.
    """
    samples = Samples(benchmark, find_files(benchmark, benchmark_data, data_dir).files)
    index = LeakIndex(samples)
    print(f"{benchmark.name}: {len(samples)} samples with {index.pictures} different pictures")
    sets = [_compare(name, index, columns, split) for name in train_data]
    for line in report(sets):
        print(line)
    if output is not None:
        write_json(output, [dataclasses.asdict(one) for one in sets])
    return sets


def _compare(name: str, index: LeakIndex, columns: Columns, split: str | None) -> Compared:
    tokenised = (Path(name) / MANIFEST).is_file()
    found = Compared(name, tokenised)
    if tokenised:
        rows: Iterator[TrainRow | BadRow] = _tokenised_rows(Path(name))
    else:
        source = open_rows(name, "local" if Path(name).exists() else "HF", split, columns)
        rows = train_rows(source.read(range(len(source))), columns, index)
    for row in rows:
        found.rows += 1
        if isinstance(row, BadRow):
            found.unreadable += 1
            continue
        found.unreadable += None in row.pictures
        found.findings += index.find(row, by_id=tokenised)
    return found


def _tokenised_rows(folder: Path) -> Iterator[TrainRow]:
    for entry in read_json(folder / MANIFEST).get("shards", []):
        file = folder / Path(entry["file"]).name
        if not file.is_file():
            raise UserError(f"{file} is missing, though {MANIFEST} lists it")
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "instruction"]):
            for row in batch.to_pylist():
                yield TrainRow(row["id"], row["instruction"], ())


def report(sets: Sequence[Compared]) -> Iterator[str]:
    """The lines of the report."""
    for one in sets:
        looked_at = "instructions and ids; its pictures are codes" if one.tokenised else "pictures and instructions"
        unreadable = f", {one.unreadable} of them not readable" if one.unreadable else ""
        yield f"compared with {one.name}: {one.rows} rows{unreadable} ({looked_at})"
    # A sample counts once, as the worst that was found of it.
    worst: dict[str, str] = {}
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in sets:
        for finding in one.findings:
            where[finding.sample, finding.kind].append(f"{one.name} row {finding.row}")
            worst[finding.sample] = min(worst.get(finding.sample, finding.kind), finding.kind, key=KINDS.index)
    for kind in KINDS:
        samples = [sample for sample, found in worst.items() if found == kind]
        yield f"{len(samples)} samples: {MEANING[kind]}"
        for sample in samples[:SHOWN]:
            rows = where[sample, kind]
            yield f"  {sample}: {rows[0]}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''}"
        if len(samples) > SHOWN:
            yield f"  and {len(samples) - SHOWN} more samples"
    yield "not seen: pictures that were resized, cropped or compressed again, and instructions in other words"


def main() -> None:
    parser = argparse.ArgumentParser(description="Look for rows of a benchmark in training data.", allow_abbrev=False)
    parser.add_argument("--benchmark", default=GENERIC.name, choices=BENCHMARKS, help="rules and columns to begin with")
    parser.add_argument("--benchmark-data", help="a Parquet file, a folder of them (default: the benchmark's own)")
    parser.add_argument("--data-dir", type=Path, help="a folder with a subfolder or files named as the benchmark")
    parser.add_argument("--benchmark-columns", nargs=3, metavar=("SOURCE", "INSTRUCTION", "TARGET"), help="its columns")
    parser.add_argument("--train-data", nargs="+", required=True, help="files, folders, Hub ids, tokenised data sets")
    parser.add_argument("--split", help="of the training data")
    parser.add_argument("--original-image-key", default="input", help="their column of the source picture")
    parser.add_argument("--edited-image-key", "--edited-image", default="output", help="of the target picture")
    parser.add_argument("--edit-instruction-key", "--edit-instruction", default="instruction", help="of the text")
    parser.add_argument("--id-key", help="of the id (default: the row number)")
    parser.add_argument("--output", type=Path, help="JSON file for all that was found")
    options: dict[str, Any] = vars(parser.parse_args())
    benchmark = BENCHMARKS[options.pop("benchmark")]
    if names := options.pop("benchmark_columns"):
        benchmark = dataclasses.replace(benchmark, **dict(zip(("source", "instruction", "target"), names, strict=True)))
    columns = Columns(
        source=options.pop("original_image_key"),
        edited=options.pop("edited_image_key"),
        instruction=options.pop("edit_instruction_key"),
        id=options.pop("id_key"),
    )
    run(benchmark=benchmark, columns=columns, **options)


if __name__ == "__main__":
    run_main(main)
