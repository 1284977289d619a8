"""The published benchmarks: files with their columns in, samples out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noise_images import IMAGE, noise, png

from baselines.benchmarks.samples import Samples, find_rows, rows_of_files
from baselines.benchmarks.spec import BENCHMARKS, GENERIC, PIE_BENCH, Subset
from emu3.errors import UserError

# Columns and file names as published; what the evaluation does not read is left out.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "omniedit": (
        {"src_img": 0, "edited_img": 1, "edited_prompt_list": ["add it", "put it"], "task": "add",
         "omni_edit_id": "a_1"},
        {"id": "a_1", "task": "add", "split": "simple", "instruction": "add it", "target": True},
    ),
    "emuedit": (
        {"image": 0, "instruction": "add it", "task": "add", "idx": 17, "input_caption": "a sky",
         "output_caption": "a sky with it"},
        {"id": "17", "task": "add", "split": "simple", "instruction": "add it", "target": False,
         "source_caption": "a sky", "target_caption": "a sky with it"},
    ),
    "aurora": (
        {"input": 0, "output": 1, "instruction": "move it", "source": "ag"},
        {"id": "0", "task": "ag", "split": "complex", "instruction": "move it", "target": True, "source_set": "ag"},
    ),
    "magicbrush": (
        {"input": 0, "mask": 2, "output": 1, "instruction": "paint it"},
        {"id": "0", "task": "magicbrush", "split": "complex", "instruction": "paint it", "target": True},
    ),
    "vismin": (
        {"source_image": 0, "edited_image": 1, "edit_instruction": "edit_instruction: swap them", "id": "v1"},
        {"id": "v1", "task": "relation", "split": "complex", "instruction": "swap them", "target": True},
    ),
    "i2ebench": (
        {"image": 0, "instruction": "less rain", "task": "RainRemoval", "sample_id": "3"},
        {"id": "3", "task": "RainRemoval", "split": "complex", "instruction": "less rain", "target": False},
    ),
    "gedit": (
        {"input_image": 0, "instruction": "redder", "task_type": "color", "key": "k", "instruction_language": "en"},
        {"id": "k", "task": "color", "split": "all", "instruction": "redder", "target": False},
    ),
    "piebench": (
        {"id": "p", "task": "add object", "instruction": "add it", "source_caption": "a sky",
         "target_caption": "a sky with it", "image": 0, "mask": 3},
        {"id": "p", "task": "add object", "split": "all", "instruction": "add it", "target": False,
         "source_caption": "a sky", "target_caption": "a sky with it"},
    ),
}  # fmt: skip
FILES = {"vismin": "relation-00001.parquet"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """Numbers in image columns are seeds; a mask has two colours."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    for name, cells in columns.items():
        if isinstance(cells[0], int) and name != "idx":
            images = [noise(seed).convert("1") if name == "mask" else noise(seed) for seed in cells]
            columns[name] = pa.array([{"bytes": png(image), "path": None} for image in images], IMAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_columns_as_published(name: str, tmp_path: Path) -> None:
    """Guards a column map that reads another column, a wrong half of the paper, and a prefix that a model would see."""
    row, expected = PUBLISHED[name]
    write(tmp_path / name / FILES.get(name, "file.parquet"), row)
    spec = BENCHMARKS[name]
    [sample] = Samples(spec, find_rows(spec, data_dir=tmp_path))
    keys = ("id", "task", "split", "instruction", "source_set", "source_caption", "target_caption")
    nothing = {"source_set": "", "source_caption": None, "target_caption": None}
    assert {key: getattr(sample, key) for key in keys} | {"target": expected["target"]} == nothing | expected
    assert (sample.mask is not None) == (name == "piebench")
    assert sample.source.tobytes() == noise(0).tobytes()
    assert (sample.target is not None) == expected["target"]
    assert sample.target is None or sample.target.tobytes() == noise(1).tobytes()


def test_the_published_subsets() -> None:
    subsets = {name: spec.subset for name, spec in BENCHMARKS.items() if spec.subset is not None}
    assert subsets == dict.fromkeys(("emuedit", "i2ebench"), Subset(seed=42, rows=1000))
    on_the_hub = [spec for spec in BENCHMARKS.values() if spec not in (GENERIC, PIE_BENCH)]
    assert all(spec.hub and spec.files and spec.title and spec.licence for spec in on_the_hub)


def test_vismin_takes_its_tasks_from_the_files(tmp_path: Path) -> None:
    row = PUBLISHED["vismin"][0]
    for name in ("relation", "counting"):
        write(tmp_path / f"vismin/data/train/{name}-00001.parquet", row | {"id": name})
    write(tmp_path / "vismin/data/train/object-00001.parquet", row | {"id": "not one of the two"})
    spec = BENCHMARKS["vismin"]
    samples = Samples(spec, find_rows(spec, data_dir=tmp_path))
    assert [(sample.id, sample.task) for sample in samples] == [("counting", "counting"), ("relation", "relation")]
    with pytest.raises(UserError, match="the task of its rows is in its name, which has none of counting, relation"):
        Samples(spec, rows_of_files(spec, [write(tmp_path / "x.parquet", row)]))[0]


def test_gedit_is_asked_in_english(tmp_path: Path) -> None:
    row = PUBLISHED["gedit"][0]
    file = write(tmp_path / "gedit.parquet", row, row | {"key": "k2", "instruction_language": "cn"})
    assert [sample.id for sample in Samples(BENCHMARKS["gedit"], rows_of_files(BENCHMARKS["gedit"], [file]))] == ["k"]


def test_a_missing_column_of_a_benchmark_is_named(tmp_path: Path) -> None:
    row = {key: value for key, value in PUBLISHED["emuedit"][0].items() if key != "task"}
    with pytest.raises(UserError, match="no column 'task'; it has image, instruction, idx"):
        Samples(BENCHMARKS["emuedit"], rows_of_files(BENCHMARKS["emuedit"], [write(tmp_path / "emuedit.parquet", row)]))


def test_a_benchmark_of_ones_own_has_a_name() -> None:
    """Guards two datasets that are both called `data`, and one that stands beside published numbers as `omniedit`."""
    assert GENERIC.called("my edits").name == "my edits"
    assert BENCHMARKS["omniedit"].called("omniedit") == BENCHMARKS["omniedit"]
    for name in ("omni edit", "EmuEdit", "GEdit-Bench", "../x", ""):
        with pytest.raises(UserError, match=r"is a benchmark that is known here|is no name"):
            GENERIC.called(name)
