"""The six benchmarks of the paper, its section 4.2, PIE-Bench, on which it is compared with EditAR, and GEdit-Bench,
on which editors are compared today.

Files and columns are as published, the subsets those of the published evaluation. No revision is pinned: none is named
with the published numbers. The commit that was read is kept with every run. Licences are the publishers' and
bind whoever uses the data; nothing of it is in this repository.
"""

from __future__ import annotations

from collections.abc import Mapping

from baselines.benchmarks.spec import GENERIC, Benchmark, Subset

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
