"""Reading a benchmark: where its files are, columns, splits, and rows that must not pass silently."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, commit_of, use
from noise_images import IMAGE, noise, png

from baselines import evaluate
from baselines.benchmarks.samples import DEV, HELD_OUT, Samples, columns_of, find_rows, rows_of_files
from baselines.benchmarks.spec import AURORA, BENCHMARKS, GENERIC, Benchmark, Subset
from baselines.results.predictions import Prediction
from baselines.results.records import read_records
from emu3.errors import UserError

FULL = Benchmark("data", source="input", instruction="instruction", target="output", task="task", id="id")
AURORA_FILE = Path(__file__).parents[3] / "../shared/data/aurora-bench-dev.parquet"


def test_takes_the_columns_that_it_is_told(make_data: Callable[..., Path]) -> None:
    samples = Samples(FULL, rows_of_files(FULL, [make_data(rows=3)]))
    assert [(sample.id, sample.task, sample.split) for sample in samples] == [
        ("sample-0", "counting", "complex"),
        ("sample-1", "colour", "simple"),
        ("sample-2", "counting", "complex"),
    ]
    assert samples[1].instruction == "change number 1"
    assert samples[1].target is not None and samples[1].target.tobytes() != samples[1].source.tobytes()


def test_split_without_a_column_is_that_of_the_task_then_of_the_benchmark(make_data: Callable[..., Path]) -> None:
    spec = Benchmark("b", "input", "instruction", task="task", split="complex", splits={"colour": "simple"})
    samples = Samples(spec, rows_of_files(spec, [make_data(rows=2, split=None)]))
    assert [sample.split for sample in samples] == [
        "complex",
        "simple",
    ]


def test_without_columns_a_row_has_its_number_and_the_benchmark(make_data: Callable[..., Path]) -> None:
    sample = Samples(GENERIC, rows_of_files(GENERIC, [make_data()]))[1]
    assert (sample.id, sample.task, sample.target) == ("1", "data", None)


def ids(files: list[Path], spec: Benchmark = FULL, **chosen: Any) -> list[str]:
    return [sample.id for sample in Samples(spec, rows_of_files(spec, files), **chosen)]


def test_limit_draws_rows_by_a_seed(make_data: Callable[..., Path]) -> None:
    """Guards against the first rows, which are those of one task or source: a draw holds the smaller ones, in the order
    of the data, the same in every call."""
    files = [make_data(rows=30)]
    whole, large, small = ids(files), ids(files, limit=12), ids(files, limit=5)
    assert len(large) == 12 and len(small) == 5 and set(small) < set(large) < set(whole)
    assert [name for name in whole if name in large] == large != whole[:12]
    assert ids(files, limit=5) == small and ids(files, limit=99) == whole


def test_a_run_over_the_first_rows_is_not_taken_for_a_draw(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards runs of before, whose limit took the first rows; and those that know no parts: these go on."""
    data, settings = make_data(), tmp_path / "out/settings.json"

    def run() -> None:
        evaluate.run(editor="no-edit", data=data, output_dir=tmp_path / "out", benchmark=FULL, limit=2, image_area=256)

    run()
    found = json.loads(settings.read_text())
    assert (found["limit"], found.pop("part")) == ("2 by seed 42", None)
    settings.write_text(json.dumps(found))
    run()
    settings.write_text(json.dumps(found | {"limit": 2}))
    with pytest.raises(UserError, match='holds a run with limit=2, this one has limit="2 by seed 42"'):
        run()


def test_the_development_part_shares_no_image_with_the_rest(make_data: Callable[..., Path]) -> None:
    """Guards settings that were chosen on edits of the images that they are then measured with: by the image as it is
    stored, or by the data's own name of it."""
    images = [{"bytes": png(noise(row // 3)), "path": None} for row in range(90)]
    scenes = [f"scene {row // 6}" for row in range(90)]
    files = [make_data(rows=90, input=pa.array(images, IMAGE), scene=scenes)]
    for spec, edits in ((FULL, 3), (replace(FULL, source_id="scene"), 6)):
        parts = {part: Samples(spec, rows_of_files(spec, files), part=part) for part in (DEV, HELD_OUT)}
        dev, held_out = ([sample.source_id for sample in samples] for samples in parts.values())
        assert len(dev) + len(held_out) == 90 and not set(dev) & set(held_out)
        assert 0 < len(dev) < 45 and set(Counter(dev + held_out).values()) == {edits}
    assert set(dev) < set(scenes)
    drawn = ids(files, part=DEV, limit=2)
    assert len(drawn) == 2 and [name for name in ids(files, part=DEV) if name in drawn] == drawn
    with pytest.raises(UserError, match="its 1 rows are too few to have a part 'dev'"):
        ids([make_data(rows=1)], part=DEV)


def test_reads_files_in_order(make_data: Callable[..., Path], tmp_path: Path) -> None:
    for place in (0, 1):
        make_data(rows=2, id=[f"{place}-a", f"{place}-b"]).rename(tmp_path / f"{place}.parquet")
    samples = Samples(FULL, rows_of_files(FULL, [tmp_path / "0.parquet", tmp_path / "1.parquet"]))
    assert [sample.id for sample in samples] == ["0-a", "0-b", "1-a", "1-b"]


@pytest.mark.parametrize(("total", "rows"), [(3589, 1000), (1000, 1000), (40, 7)])
def test_a_subset_is_that_of_datasets(total: int, rows: int) -> None:
    """Guards the published rows: another shuffle would be another benchmark."""
    theirs = datasets.Dataset.from_dict({"row": list(range(total))}).shuffle(seed=42).select(range(rows))
    assert Subset(seed=42, rows=rows).of(total) == theirs["row"][:]


def test_a_subset_comes_shuffled_with_ids_of_the_whole(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards images, texts and ids that part when rows are chosen; across files, in an order that is not theirs."""
    files = []
    for place in range(3):
        images = [{"bytes": png(noise(4 * place + row)), "path": None} for row in range(4)]
        data = make_data(rows=4, input=pa.array(images, IMAGE), instruction=[f"{4 * place + row}" for row in range(4)])
        files.append(data.rename(tmp_path / f"{place}.parquet"))
    spec = Benchmark("b", "input", "instruction", target="output", subset=Subset(seed=42, rows=5))
    samples = Samples(spec, rows_of_files(spec, files))
    order = Subset(seed=42, rows=5).of(12)
    assert order != sorted(order)
    for sample, row in zip(samples, order, strict=True):
        assert (sample.id, sample.instruction) == (str(row), str(row))
        assert sample.source.tobytes() == noise(row).tobytes()
    assert samples.rows_in_files == 12 and samples.rows_with_target() == [0, 1, 2, 3, 4]
    drawn = ids(files, spec, limit=2)
    assert [str(row) for row in order if str(row) in drawn] == drawn and len(drawn) == 2


def test_only_rows_with_the_wanted_value_count(make_data: Callable[..., Path]) -> None:
    spec = Benchmark("b", "input", "instruction", where=("task", "colour"))
    assert [sample.id for sample in Samples(spec, rows_of_files(spec, [make_data(rows=5)]))] == ["1", "3"]
    with pytest.raises(UserError, match="holds no row with 'x' in column 'task'"):
        Samples(
            Benchmark("b", "input", "instruction", where=("task", "x")),
            rows_of_files(Benchmark("b", "input", "instruction", where=("task", "x")), [make_data()]),
        )


def test_repeated_ids_of_published_data_are_told_apart(make_data: Callable[..., Path]) -> None:
    """I2EBench counts from 1 within each task."""
    spec = Benchmark("b", "input", "instruction", id="id", hub="org/name")
    samples = Samples(spec, rows_of_files(spec, [make_data(rows=3, id=["1", "2", "1"])]))
    assert [sample.id for sample in samples] == ["1#0", "2", "1#2"]


def test_missing_column_is_named_with_those_that_exist(make_data: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"no column 'task'; it has id, input, output, instruction, split"):
        Samples(FULL, rows_of_files(FULL, [make_data(task=None)]))


def test_an_id_that_occurs_twice_is_refused(make_data: Callable[..., Path]) -> None:
    """Guards the pairing of models by id."""
    with pytest.raises(UserError, match="'x' in column 'id' occurs more than once"):
        Samples(FULL, rows_of_files(FULL, [make_data(rows=3, id=["x", "y", "x"])]))


def test_a_broken_image_names_its_row(make_data: Callable[..., Path]) -> None:
    broken = pa.array([b"no image"] * 2)
    with pytest.raises(UserError, match="row sample-0: input cannot be read as an image"):
        Samples(FULL, rows_of_files(FULL, [make_data(rows=2, input=broken)]))[0]


def test_no_rows_is_an_error(make_data: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no rows"):
        Samples(GENERIC, rows_of_files(GENERIC, [make_data(rows=0)]))


@pytest.mark.skipif(not AURORA_FILE.is_file(), reason="no AURORA-Bench at hand")
def test_aurora_bench_as_published() -> None:
    samples = Samples(AURORA, rows_of_files(AURORA, [AURORA_FILE]))
    assert len(samples) == 200 and len(samples.rows_with_target()) == 124
    assert len({sample.task for sample in samples}) == 8
    assert all(sample.task == sample.source_set for sample in samples)
    first_without = next(row for row in range(200) if row not in samples.rows_with_target())
    assert samples[first_without].target is None and samples[first_without].split == "complex"


def names(found: Sequence[Path]) -> list[str]:
    return [file.name for file in found]


def test_a_folder_of_benchmarks(tmp_path: Path) -> None:
    """A subfolder or files of the benchmark's name; of files with their published names only those of the split."""
    (tmp_path / "aurora").mkdir()
    for name in ("test-00000-of-00001.parquet", "train-00000-of-00001.parquet"):
        (tmp_path / "aurora" / name).write_bytes(published(AURORA))
    assert names(find_rows(AURORA, data_dir=tmp_path).files) == ["test-00000-of-00001.parquet"]
    for name in ("emuedit-b.parquet", "emuedit-a.parquet"):
        (tmp_path / name).write_bytes(published(BENCHMARKS["emuedit"]))
    found = find_rows(BENCHMARKS["emuedit"], data_dir=tmp_path)
    assert names(found.files) == ["emuedit-a.parquet", "emuedit-b.parquet"] and found.origin == "local"
    with pytest.raises(UserError, match=r"holds neither a folder gedit nor files gedit\*.parquet"):
        find_rows(BENCHMARKS["gedit"], data_dir=tmp_path)


def test_a_split_takes_the_files_that_are_named_for_it(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards an evaluation on rows that were trained on, which lie in the same folder."""
    for split in ("train", "test"):
        make_data(rows=1, id=[split]).rename(tmp_path / f"{split}-00000-of-00001.parquet")
    assert names(find_rows(GENERIC, tmp_path, split="test").files) == ["test-00000-of-00001.parquet"]
    with pytest.raises(UserError, match="no files of split 'validation'; it has test-00000"):
        find_rows(GENERIC, tmp_path, split="validation")


def published(spec: Benchmark, rows: int = 1) -> bytes:
    """A Parquet file with the columns of a benchmark."""
    columns = columns_of(spec)
    cells = [{"bytes": png(noise(row)), "path": None} for row in range(rows)]
    texts = [spec.where[1] if spec.where else f"text {row}" for row in range(rows)]
    table = {name: pa.array(cells, IMAGE) if name in columns.images() else texts for name in columns.names()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    omniedit, gedit = published(BENCHMARKS["omniedit"]), published(BENCHMARKS["gedit"])
    served = {
        "TIGER-Lab/OmniEdit-Filtered-1.2M": {
            "main": {"data/dev-00000-of-00001.parquet": omniedit, "data/train-00000-of-00001.parquet": omniedit}
        },
        "stepfun-ai/GEdit-Bench": {"refs/convert/parquet": {"default/train/0.parquet": gedit}},
        "McGill-NLP/aurora-bench": {"main": {"data/dev-0.parquet": b""}},
        "org/pairs": {"v1": {"data/dev-0.parquet": published(GENERIC, rows=3), "data/train-0.parquet": b""}},
    }
    with FakeHub(datasets=served) as running:
        end = use(monkeypatch, running, tmp_path / "cache")
        yield running
        end()


def test_a_benchmark_comes_from_its_place_on_the_hub(hub: FakeHub) -> None:
    """Guards 1.2 million training rows that nobody asked for, and a run that does not know its commit."""
    found = find_rows(BENCHMARKS["omniedit"])
    assert found.origin == f"TIGER-Lab/OmniEdit-Filtered-1.2M@{commit_of('main')}"
    assert hub.fetched == ["data/dev-00000-of-00001.parquet"]
    assert names(found.files) == hub.fetched[0].split("/")[1:]
    gedit = find_rows(BENCHMARKS["gedit"])
    assert names(gedit.files) == ["0.parquet"] and gedit.origin.endswith(commit_of("refs/convert/parquet"))
    with pytest.raises(UserError, match=r"benchmark aurora: .* has no files data/test-\*.parquet; it has data/dev-"):
        find_rows(AURORA)


def test_data_by_hub_id(hub: FakeHub) -> None:
    assert names(find_rows(GENERIC, "org/pairs@v1", split="dev").files) == ["dev-0.parquet"]
    assert hub.fetched == ["data/dev-0.parquet"]
    with pytest.raises(UserError, match="org/pairs is on the Hub: name its split"):
        find_rows(GENERIC, "org/pairs")
    with pytest.raises(UserError, match=r"org/none does not exist here, and as a Hub id: .* is not on the Hub"):
        find_rows(GENERIC, "org/none", split="dev")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "/nowhere/nothing.parquet"}, "neither a file nor a folder here"),
        ({"data": "a/b", "data_dir": Path("c")}, "name the same thing twice"),
        ({"split": "dev"}, "--split chooses among the files of --data"),
        ({}, "benchmark 'data' has no place on the Hub: say where it is"),
    ],
)
def test_no_data_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_rows(GENERIC, **arguments)


def test_an_image_folder_is_evaluated_as_it_is_trained_on(tmp_path: Path) -> None:
    """And a run knows its images: of the table alone it would not notice that they were replaced."""
    data = tmp_path / "edits"
    data.mkdir()
    for name, seed in (("a.png", 0), ("b.png", 1)):
        (data / name).write_bytes(png(noise(seed)))
    row = json.dumps({"input": "a.png", "output": "b.png", "instruction": "make it blue"})
    (data / "edits.jsonl").write_text(f"{row}\n" * 2)
    spec = Benchmark("data", "input", "instruction", target="output")

    def predict() -> Path:
        return evaluate.run(editor="no-edit", benchmark=spec, data=data, output_dir=tmp_path / "run", image_area=256)

    assert [row.instruction for row in read_records(predict(), Prediction)] == ["make it blue"] * 2
    (data / "a.png").write_bytes(png(noise(2, 48, 48)))
    with pytest.raises(UserError, match="holds a run with data="):
        predict()
