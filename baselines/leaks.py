"""Whether rows of a benchmark occur in training data: evaluation on what was trained on measures memory.

    python -m baselines.leaks --benchmark vismin --train-data mair-lab/vismin data/tokens/vismin \
        --original-image-key source_image --edited-image-key edited_image --edit-instruction-key edit_instruction

Training data are Parquet files or folders of them, image folders with a JSONL file, Hub ids, and tokenized datasets.
Images are compared by their decoded pixels, instructions by their words; of a tokenized dataset, whose images are
codes of resized ones, only instructions and, as ids are those of the original data, ids. Equal means equal: an image
that was resized, cropped or compressed again between the two sets has other pixels and is not found, nor is an
instruction in other words. What is found is certain; finding nothing proves little. Prints what was found, by sample,
and what was not looked at; ends with code 0 either way.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from baselines.benchmarks.samples import Samples, find_rows
from baselines.benchmarks.spec import GENERIC, Benchmark, benchmark_named
from emu3.errors import UserError, run_main
from emu3.files import read_json, write_json
from emu3.flags import CommandParser
from emu3.tokenizer.images import image_size, read_image
from emu3.train_image_editing.image_rows import BadRow, Columns, image_bytes, row_id
from emu3.train_image_editing.open_rows import open_rows
from emu3.train_image_editing.shards import MANIFEST
from rl.reward.cache import pixel_digest

PAIR, IMAGE, INSTRUCTION, ID = "picture and instruction", "picture", "instruction", "id"  # as the JSON file has them
KINDS = (PAIR, IMAGE, ID, INSTRUCTION)
MEANING = {
    PAIR: "an image of theirs and their instruction occur in one training row",
    IMAGE: "an image of theirs occurs, under another instruction",
    ID: "their id occurs",
    INSTRUCTION: "only their instruction occurs, which short ones do by chance",
}

SHOWN = 20
"""Samples that are named on the screen, of each kind; the file has all."""

_WINDOW = 256


@dataclasses.dataclass(frozen=True)
class Leak:
    """Sample `sample` of the benchmark occurs as row `row` of a training set. kind: in what, one of `KINDS`."""

    sample: str
    kind: str
    row: str


@dataclasses.dataclass
class TrainRow:
    """What can be compared of a row; `images` are pixel digests, None for an image that nobody can read."""

    id: str
    instruction: str
    images: Sequence[str | None]


def same_words(instruction: str) -> str:
    """An instruction without case, punctuation, spacing and the difference between equal characters (NFKC)."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", instruction).casefold()))


class LeakIndex:
    """The samples of a benchmark, ready to be looked up. Decodes every source and target once."""

    def __init__(self, samples: Samples) -> None:
        self._ids: list[str] = []
        self._instructions: list[str] = []
        self._by_image: dict[str, set[int]] = defaultdict(set)
        self._by_instruction: dict[str, set[int]] = defaultdict(set)
        self._by_id: dict[str, int] = {}
        self._sizes: set[tuple[int, int]] = set()
        for place, sample in enumerate(samples):
            self._ids.append(sample.id)
            self._instructions.append(same_words(sample.instruction))
            self._by_instruction[self._instructions[-1]].add(place)
            self._by_id[sample.id] = place
            for image in (sample.source, sample.target):
                if image is not None:
                    self._by_image[pixel_digest(image)].add(place)
                    # A file may be turned by its camera's note, which its header's size does not show.
                    self._sizes |= {image.size, image.size[::-1]}

    @property
    def image_count(self) -> int:
        """How many different images the benchmark has."""
        return len(self._by_image)

    def find(self, row: TrainRow, by_id: bool) -> list[Leak]:
        """Where a training row occurs in the benchmark. by_id: whether equal ids mean equal rows."""
        places = {place for digest in row.images if digest for place in self._by_image.get(digest, ())}
        words = same_words(row.instruction)
        kinds = dict.fromkeys(self._by_instruction.get(words, ()), INSTRUCTION)
        if by_id and row.id in self._by_id:
            kinds[self._by_id[row.id]] = ID
        kinds |= {place: PAIR if self._instructions[place] == words else IMAGE for place in places}
        return [Leak(self._ids[place], kind, row.id) for place, kind in sorted(kinds.items())]

    def digest(self, cell: Any) -> str | None:
        """Pixel digest of an encoded image; "" for one that no sample can equal, None for an unreadable one."""
        try:
            data = image_bytes(cell, "image")
            # By its size alone most of a large training set needs no decoding.
            size = image_size(io.BytesIO(data))
            if any(size) and size not in self._sizes:
                return ""
            return pixel_digest(read_image(io.BytesIO(data), "image"))
        except (BadRow, UserError):
            return None


def train_rows(
    rows: Iterable[Mapping[str, Any] | BadRow], columns: Columns, index: LeakIndex
) -> Iterator[TrainRow | BadRow]:
    """The rows of an image dataset, a few hundred under way on all cores."""

    def read(numbered: tuple[int, Mapping[str, Any] | BadRow]) -> TrainRow | BadRow:
        number, values = numbered
        if isinstance(values, BadRow):
            return values
        cells = [values[name] for name in (columns.source, columns.edited) if name is not None]
        instruction = values[columns.instruction]
        if isinstance(instruction, list):
            instruction = instruction[0] if instruction else ""
        images = [index.digest(cell) for cell in cells if cell is not None]
        return TrainRow(row_id(values, columns, number), str(instruction or ""), images)

    numbered = enumerate(rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while window := list(islice(numbered, _WINDOW)):
            yield from pool.map(read, window)


@dataclasses.dataclass
class Compared:
    """One training set. tokenised: its images are codes. unreadable: rows with an image or line nobody can read."""

    name: str
    tokenised: bool
    rows: int = 0
    unreadable: int = 0
    findings: list[Leak] = dataclasses.field(default_factory=list)


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

    `columns` are those of the training data with images, `split` theirs, too ("train" on the Hub if not given).
    Raises `UserError` for data that are not there.
    """
    samples = Samples(benchmark, find_rows(benchmark, benchmark_data, data_dir))
    index = LeakIndex(samples)
    print(f"{benchmark.name}: {len(samples)} samples with {index.image_count} different images")
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
        rows: Iterator[TrainRow | BadRow] = _tokenized_rows(Path(name))
    else:
        source = open_rows(name, "local" if Path(name).exists() else "HF", split, columns)
        rows = train_rows(source.read(range(len(source))), columns, index)
    for row in rows:
        found.rows += 1
        if isinstance(row, BadRow):
            found.unreadable += 1
            continue
        found.unreadable += None in row.images
        found.findings += index.find(row, by_id=tokenised)
    return found


def _tokenized_rows(folder: Path) -> Iterator[TrainRow]:
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
        looked_at = "instructions and ids; its images are codes" if one.tokenised else "images and instructions"
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
    yield "not seen: images that were resized, cropped or compressed again, and instructions in other words"


def main() -> None:
    parser = CommandParser(description="Look for rows of a benchmark in training data.")
    parser.add_argument("--benchmark", default=GENERIC.name, help="rules and columns to begin with, as for evaluate")
    parser.add_argument("--benchmark-data", help="a Parquet file, a folder of them (default: the benchmark's own)")
    parser.add_argument("--data-dir", type=Path, help="a folder with a subfolder or files named as the benchmark")
    parser.add_argument("--benchmark-columns", nargs=3, metavar=("SOURCE", "INSTRUCTION", "TARGET"), help="its columns")
    parser.add_argument("--train-data", nargs="+", required=True, help="files, folders, Hub ids, tokenized datasets")
    parser.add_argument("--split", help="of the training data")
    parser.add_argument("--original-image-key", default="input", help="their column of the source image")
    parser.add_argument("--edited-image-key", "--edited-image", default="output", help="of the target image")
    parser.add_argument("--edit-instruction-key", "--edit-instruction", default="instruction", help="of the text")
    parser.add_argument("--id-key", help="of the id (default: the row number)")
    parser.add_argument("--output", type=Path, help="JSON file for all that was found")
    options: dict[str, Any] = vars(parser.parse_args())
    benchmark = benchmark_named(options.pop("benchmark"))
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
