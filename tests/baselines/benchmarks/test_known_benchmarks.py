"""The published benchmarks: files with their columns in, samples out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noise_pictures import IMAGE, noise, png

from baselines.benchmarks.files import find_files
from baselines.benchmarks.known import BENCHMARKS, PIE_BENCH
from baselines.benchmarks.samples import Samples
from baselines.benchmarks.spec import GENERIC, Subset
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
    """Numbers in picture columns are seeds."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    for name, cells in columns.items():
        if isinstance(cells[0], int) and name != "idx":
            columns[name] = pa.array([{"bytes": png(noise(seed)), "path": None} for seed in cells], IMAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_columns_as_published(name: str, tmp_path: Path) -> None:
    """Guards a column map that reads another column, a wrong half of the paper, and a prefix that a model would see."""
    row, expected = PUBLISHED[name]
    write(tmp_path / name / FILES.get(name, "file.parquet"), row)
    spec = BENCHMARKS[name]
    [sample] = Samples(spec, find_files(spec, data_dir=tmp_path).files)
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
    samples = Samples(spec, find_files(spec, data_dir=tmp_path).files)
    assert [(sample.id, sample.task) for sample in samples] == [("counting", "counting"), ("relation", "relation")]
    with pytest.raises(UserError, match="the task of its rows is in its name, which has none of counting, relation"):
        Samples(spec, [write(tmp_path / "x.parquet", row)])[0]


def test_gedit_is_asked_in_english(tmp_path: Path) -> None:
    row = PUBLISHED["gedit"][0]
    file = write(tmp_path / "gedit.parquet", row, row | {"key": "k2", "instruction_language": "cn"})
    assert [sample.id for sample in Samples(BENCHMARKS["gedit"], [file])] == ["k"]


def test_a_missing_column_of_a_benchmark_is_named(tmp_path: Path) -> None:
    row = {key: value for key, value in PUBLISHED["emuedit"][0].items() if key != "task"}
    with pytest.raises(UserError, match="no column 'task'; it has image, instruction, idx"):
        Samples(BENCHMARKS["emuedit"], [write(tmp_path / "emuedit.parquet", row)])


def names(found: tuple[Path, ...]) -> list[str]:
    return [file.name for file in found]


def test_a_folder_of_benchmarks(tmp_path: Path) -> None:
    """A subfolder or files of the benchmark's name; of files with their published names only those of the split."""
    aurora = BENCHMARKS["aurora"]
    for name in ("test-00000-of-00001.parquet", "train-00000-of-00001.parquet"):
        write(tmp_path / "aurora" / name, PUBLISHED["aurora"][0])
    assert names(find_files(aurora, data_dir=tmp_path).files) == ["test-00000-of-00001.parquet"]
    write(tmp_path / "emuedit-b.parquet", PUBLISHED["emuedit"][0])
    write(tmp_path / "emuedit-a.parquet", PUBLISHED["emuedit"][0])
    found = find_files(BENCHMARKS["emuedit"], data_dir=tmp_path)
    assert names(found.files) == ["emuedit-a.parquet", "emuedit-b.parquet"] and found.origin == "local"
    with pytest.raises(UserError, match=r"holds neither a folder gedit nor files gedit\*.parquet"):
        find_files(BENCHMARKS["gedit"], data_dir=tmp_path)


def test_a_split_takes_the_files_that_are_named_for_it(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards an evaluation on rows that were trained on, which lie in the same folder."""
    for split in ("train", "test"):
        make_data(rows=1, id=[split]).rename(tmp_path / f"{split}-00000-of-00001.parquet")
    assert names(find_files(GENERIC, tmp_path, split="test").files) == ["test-00000-of-00001.parquet"]
    with pytest.raises(UserError, match="no files of split 'validation'; it has test-00000"):
        find_files(GENERIC, tmp_path, split="validation")


class FakeHub:
    """Stands in for `HubData`; notes what is fetched."""

    fetched: list[str]
    asked: list[str]

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root, self.names, self.fetched, self.asked = root, files, [], []

    def __call__(self, name: str) -> FakeHub:
        self.asked.append(name)
        if "none" in name:
            raise UserError(f"data set {name} is not on the Hub")
        return self

    def fetch(self, files: list[str]) -> Path:
        self.fetched += files
        return self.root / "c0ffee"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(tmp_path, [
        "README.md", "data/dev-00000-of-00001.parquet", "data/train-00000-of-00001.parquet", "default/train/0.parquet",
    ])  # fmt: skip
    monkeypatch.setattr("baselines.benchmarks.files.HubData", hub)
    return hub


def test_a_benchmark_comes_from_its_place_on_the_hub(hub: FakeHub) -> None:
    """Guards 1.2 million training rows that nobody asked for, and a run that does not know its commit."""
    found = find_files(BENCHMARKS["omniedit"])
    assert found.origin == "TIGER-Lab/OmniEdit-Filtered-1.2M@c0ffee"
    assert hub.fetched == ["data/dev-00000-of-00001.parquet"]
    assert found.files == (hub.root / "c0ffee/data/dev-00000-of-00001.parquet",)
    assert find_files(BENCHMARKS["gedit"]).files == (hub.root / "c0ffee/default/train/0.parquet",)
    assert hub.asked[-1] == "stepfun-ai/GEdit-Bench@refs/convert/parquet"
    with pytest.raises(UserError, match=r"benchmark aurora: .* has no files data/test-\*.parquet; it has data/dev-"):
        find_files(BENCHMARKS["aurora"])


def test_data_by_hub_id(hub: FakeHub) -> None:
    assert names(find_files(GENERIC, "org/pairs@v1", split="dev").files) == ["dev-00000-of-00001.parquet"]
    assert hub.asked == ["org/pairs@v1"]
    with pytest.raises(UserError, match="org/pairs is on the Hub: name its split"):
        find_files(GENERIC, "org/pairs")
    with pytest.raises(UserError, match=r"org/none does not exist here, and as a Hub id: .* is not on the Hub"):
        find_files(GENERIC, "org/none", split="dev")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "/nowhere/nothing.parquet"}, "neither a Parquet file nor a folder"),
        ({"data": "a/b", "data_dir": Path("c")}, "name the same thing twice"),
        ({"split": "dev"}, "--split chooses among the files of --data"),
        ({}, "benchmark 'data' has no place on the Hub: say where it is"),
    ],
)
def test_no_data_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_files(GENERIC, **arguments)
