"""The benchmarks: where their files are, what their columns are called, which rows count.

`BENCHMARKS` holds the six benchmarks of the paper (section 4.2), PIE-Bench, on which it is compared with EditAR,
GEdit-Bench, on which editors are compared today, and `GENERIC` for data of one's own. Files and columns are as
published, the subsets those of the published evaluation. No revision is pinned, since none is named with the published
numbers; the commit that was read is kept with every run. Licences are the publishers' and bind whoever uses the data;
nothing of it is in this repository.

The paper sorts its benchmarks into simple edits (one object, one attribute) and complex ones (counting, relations,
actions). A row's split is its `split` column where the data has one, else its task's entry in `splits`, else the
benchmark's own `split`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from emu3.errors import UserError
from emu3.extensions import is_extension, load_extension

SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class Subset:
    """`rows` rows in the order of `datasets.Dataset.shuffle(seed=seed).select(range(rows))`."""

    seed: int
    rows: int

    def of(self, total: int) -> list[int]:
        """The row numbers, of `total`; all of them, shuffled, where there are fewer than `rows`."""
        order: list[int] = np.random.default_rng(self.seed).permutation(total)[: self.rows].tolist()
        return order


@dataclass(frozen=True)
class Benchmark:
    """Column names of a benchmark, None where it has no such column, and the rules that choose and mend its rows.

    `source` and `target` hold images, `target` may be null in single rows. Without `id` the row number is the id.
    `source_set` names the part of the benchmark that a row comes from, `source_id` the image that it edits, where
    several rows edit one. The captions describe the image before and
    after the edit; `mask` holds an image of the source's size, white where the edit belongs. They may be null, too.

    hub: id on the Hugging Face Hub; None for data of one's own. revision: None takes the default branch. files: the
    Parquet files there, as patterns.
    where: a column and the value that a row must have in it. subset: applied to the rows that are left.
    file_tasks: the task is the one of these words that stands in the name of a row's file.
    drop_prefix: taken off the front of an instruction.
    title: what the paper calls it. licence: what its publisher says, as far as that was found. rows: of the published
    files, before `where` and `subset`, where known.
    """

    name: str
    source: str
    instruction: str
    target: str | None = None
    task: str | None = None
    id: str | None = None
    source_set: str | None = None
    source_id: str | None = None
    source_caption: str | None = None
    target_caption: str | None = None
    mask: str | None = None
    split: str = "all"
    splits: Mapping[str, str] = field(default_factory=dict)
    hub: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    where: tuple[str, str] | None = None
    subset: Subset | None = None
    file_tasks: tuple[str, ...] = ()
    drop_prefix: str = ""
    title: str = ""
    licence: str = ""
    rows: int | None = None

    def rules(self) -> dict[str, Any]:
        """What decides the content of the samples, as JSON values; not where the files are or whose they are."""
        about = ("hub", "revision", "files", "title", "licence", "rows")
        # A rule that came later is left out where it has no say: older runs go on.
        later = ("source_id",) if self.source_id is None else ()
        return {key: value for key, value in asdict(self).items() if key not in (*about, *later)}

    def called(self, name: str) -> Benchmark:
        """The same under another name. Raises `UserError` for one that no folder could have, or of a known benchmark:
        its numbers would stand beside published ones."""
        if not re.fullmatch(r"\w[\w .+-]*", name):
            raise UserError(f"{name!r} is no name for a benchmark: take letters, digits and any of . _ + -")
        key = re.sub(r"[^a-z0-9]", "", name.lower())
        known = {
            re.sub(r"[^a-z0-9]", "", text.lower()) for one in BENCHMARKS.values() for text in (one.name, one.title)
        }
        if name != self.name and key in known:
            raise UserError(f"{name!r} is a benchmark that is known here: choose another name for data of your own")
        return replace(self, name=name)


GENERIC = Benchmark(name="data", source="input", instruction="instruction")

OMNIEDIT = Benchmark(
    name="omniedit",
    title="OmniEdit",
    hub="TIGER-Lab/OmniEdit-Filtered-1.2M",
    files=("data/dev-*.parquet",),
    rows=700,
    source="src_img",
    instruction="edited_prompt_list",  # several wordings of one edit: the first counts
    target="edited_img",
    task="task",
    id="omni_edit_id",
    split="simple",
    licence="MIT",
)

EMUEDIT = Benchmark(
    name="emuedit",
    title="EmuEdit",
    hub="facebook/emu_edit_test_set",
    files=("data/test-*.parquet",),
    rows=3589,
    subset=Subset(seed=42, rows=1000),
    source="image",
    instruction="instruction",
    task="task",
    id="idx",
    source_caption="input_caption",
    target_caption="output_caption",
    split="simple",
    licence="CC BY-NC 4.0: no commercial use",
)

AURORA = Benchmark(
    name="aurora",
    title="AURORA",
    hub="McGill-NLP/aurora-bench",
    files=("data/test-*.parquet",),
    rows=400,
    source="input",
    instruction="instruction",
    target="output",
    task="source",
    source_set="source",
    split="complex",
    licence="none stated with the benchmark; AURORA's training data are under MIT",
)

MAGICBRUSH = Benchmark(
    name="magicbrush",
    title="MagicBrush",
    hub="sikarwarank/magicbrush_eval",
    files=("magicbrush-test-00000.parquet",),
    source="input",
    instruction="instruction",
    target="output",
    split="complex",
    licence="CC BY 4.0 (osunlp/MagicBrush, of whose test set this is a copy)",
)

VISMIN = Benchmark(
    name="vismin",
    title="VisMin",
    hub="mair-lab/escher-vismin-dev",
    files=("data/train/counting-00001.parquet", "data/train/relation-00001.parquet"),
    source="source_image",
    instruction="edit_instruction",
    drop_prefix="edit_instruction: ",
    target="edited_image",
    file_tasks=("counting", "relation"),
    id="id",
    split="complex",
    licence="CC BY-SA 4.0 (mair-lab/vismin)",
)

I2EBENCH = Benchmark(
    name="i2ebench",
    title="I2EBench",
    hub="sikarwarank/i2bench_eval",
    files=("i2ebench-dataset.parquet",),
    subset=Subset(seed=42, rows=1000),
    source="image",
    instruction="instruction",
    task="task",
    id="sample_id",
    split="complex",
    licence="none stated with the copy: see cocoshe/I2EBench",
)

GEDIT = Benchmark(
    name="gedit",
    title="GEdit-Bench",
    hub="stepfun-ai/GEdit-Bench",
    revision="refs/convert/parquet",  # its own files are Arrow
    files=("*/train/*.parquet",),
    rows=1212,
    where=("instruction_language", "en"),
    source="input_image",
    instruction="instruction",
    task="task_type",
    id="key",
    licence="MIT",
)

PIE_BENCH = Benchmark(
    name="piebench",
    title="PIE-Bench",
    rows=700,
    source="image",
    instruction="instruction",
    task="task",
    id="id",
    source_caption="source_caption",
    target_caption="target_caption",
    mask="mask",
    licence="given out by its authors on a form: see cure-lab/PnPInversion; baselines.benchmarks.pie_bench reads it",
)

BENCHMARKS: Mapping[str, Benchmark] = {
    spec.name: spec for spec in (GENERIC, OMNIEDIT, EMUEDIT, AURORA, MAGICBRUSH, VISMIN, I2EBENCH, PIE_BENCH, GEDIT)
}


def benchmark_named(name: str) -> Benchmark:
    """One of `BENCHMARKS`, or one's own as `emu3.extensions` names it. Raises `UserError` if there is none."""
    if is_extension(name):
        own: Benchmark = load_extension(name, "benchmark", kind=Benchmark)
        return own
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}, and your own: file.py:name")
    return BENCHMARKS[name]
