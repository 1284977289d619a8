"""Files of a dataset that are no data, or are data in another form: each is read, passed over or named."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from odd_data import LINE, SPEC, SPEC_COLUMNS, cells, folder, table
from PIL import Image
from sft_world import image_bytes

from baselines.benchmarks.samples import Samples, find_rows
from baselines.benchmarks.spec import Benchmark
from emu3.errors import UserError
from emu3.train_image_editing.image_rows import LFS_POINTER
from emu3.train_image_editing.open_rows import open_rows, visible_files


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("metadata.jsonl", LINE.decode().encode("utf-16"), "is UTF-16, not UTF-8"),
        ("metadata.jsonl", LINE.decode().encode("utf-16-le"), "is UTF-16, not UTF-8"),
        ("metadata.csv", "input,output,instruction\n0.png,1.png,a\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("metadata.jsonl", LFS_POINTER + b"v1\noid sha256:00\n", "git lfs pull"),
        ("metadata.csv", LFS_POINTER + b"v1\noid sha256:00\n", "git lfs pull"),
        ("metadata.jsonl", gzip.compress(LINE, mtime=0), "is packed"),
        ("metadata.jsonl", b"[" + LINE + b"]", "one JSON value over several lines"),
        ("metadata.jsonl", json.dumps(json.loads(LINE), indent=1).encode(), "one JSON value over several lines"),
        ("metadata.jsonl", LINE.replace(b"}\n", b"}\r") * 2, "no column .*; it has none: its line is not JSON"),
        ("metadata.csv", b"input,output,instruction,instruction\n0.png,1.png,a,b\n", "two columns 'instruction'"),
        ("metadata.csv", b'input,output,instruction\n0.png,1.png,a\n0.png,1.png,"b\n0.png,1.png,c\n', "opens in row 1"),
    ],
)
def test_a_table_of_another_kind_is_named(tmp_path: Path, name: str, text: bytes, why: str) -> None:
    """Guards "has no column", of a file whose fault is another; and rows that an open quote swallows."""
    with pytest.raises(UserError, match=why):
        open_rows(str(folder(tmp_path / "data", name, text)), "local", None, SPEC_COLUMNS)


@pytest.mark.parametrize("form", ["16-bit", "metadata", "cmyk"])
def test_unusual_files_are_rows_like_others(tokenize: Callable[..., Any], tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    if form == "cmyk":
        Image.new("CMYK", (40, 40)).save(buffer, "JPEG")
    else:
        Image.fromarray(np.full((40, 40), 9, np.uint16 if form == "16-bit" else np.uint8)).save(buffer, "PNG")
    data = table(tmp_path / "x.parquet", input=pa.array([buffer.getvalue()]), instruction=["a"])
    assert tokenize(data) == (["a"], {})
    assert Samples(SPEC, find_rows(SPEC, data))[0].source.mode == "RGB"


# Folders.


def test_files_of_two_schemas_are_read_together(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """Images as a struct in one file and as bytes in the next: evaluation ended with a traceback."""
    table(tmp_path / "data/a.parquet", instruction=["a"])
    raw = pa.array([image_bytes(3)], pa.large_binary())
    table(tmp_path / "data/b.parquet", input=raw, output=raw, instruction=pa.array(["b"], pa.large_string()))
    assert tokenize(tmp_path / "data") == (["a", "b"], {})
    samples = Samples(SPEC, find_rows(SPEC, tmp_path / "data"))
    assert [sample.instruction for sample in samples] == ["a", "b"]


def test_hidden_files_are_no_data(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    table(tmp_path / "data/train.parquet", instruction=["a"])
    for name in ("._train.parquet", ".ipynb_checkpoints/train-checkpoint.parquet", "__MACOSX/x.parquet", ".DS_Store"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert tokenize(tmp_path / "data") == (["a"], {})
    assert len(find_rows(SPEC, tmp_path / "data")) == 1


@pytest.mark.parametrize(
    "copy",
    ["train-Copy1.parquet", "train (1).parquet", "train copy.parquet", "train - Copy.parquet", "train_copy.parquet",
     "Copy of train.parquet", "train (copy).parquet", "train - Kopie.parquet", "train-checkpoint.parquet"],
)  # fmt: skip
def test_a_copy_is_refused(tmp_path: Path, copy: str) -> None:
    """Guards every row twice."""
    for name in ("train.parquet", copy):
        table(tmp_path / name, instruction=["a"])
    with pytest.raises(UserError, match=r"has .*train.*, a copy of train\.parquet: remove one"):
        open_rows(str(tmp_path), "local", None, SPEC_COLUMNS)
    (tmp_path / "train.parquet").unlink()
    assert visible_files(tmp_path, ".parquet") == [copy]


def test_the_same_file_under_another_name_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards rows that count twice without a word: a backup, a link, a second download."""
    data = table(tmp_path / "data" / "train.parquet", instruction=["paint it", "clear it"])
    table(data.parent / "other.parquet", instruction=["paint me", "clear me"])
    (data.parent / "a.old.parquet").write_bytes(data.read_bytes())
    (data.parent / "link.parquet").symlink_to(data)
    open_rows(str(data.parent), "local", None, SPEC_COLUMNS)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("a.old.parquet once more, byte for byte" in line for line in said)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Guards the other of the two instructions."""
    columns = [cells(2), cells(2, 50), pa.array(["a", "b"]), pa.array(["c", "d"])]
    pq.write_table(
        pa.Table.from_arrays(columns, ["input", "output", "instruction", "instruction"]), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match="two columns 'instruction'"):
        open_rows(str(tmp_path), "local", None, SPEC_COLUMNS)


def test_what_spark_and_windows_write(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """Guards a folder named like a file, attempts that were given up, and a suffix in capitals."""
    table(tmp_path / "data" / "all.parquet" / "part-0.PARQUET", instruction=["paint it", "clear it"])
    table(tmp_path / "data" / "_temporary" / "0" / "part-0.parquet", instruction=["a", "b"])
    (tmp_path / "data" / "_common.parquet").write_bytes(b"")
    assert tokenize(tmp_path / "data") == (["paint it", "clear it"], {})


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(LFS_POINTER + b"v1\noid sha256:00\nsize 9\n")
    with pytest.raises(UserError, match=r"train\.parquet is not a Parquet file: it is a git-lfs pointer.*git lfs pull"):
        open_rows(str(tmp_path), "local", None, SPEC_COLUMNS)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["train", "test"], "all"),
        ([1, 2], "all"),
        ([{"a": 1}] * 2, "all"),
        (["", None], "all"),
        (["complex"] * 2, "complex"),
    ],
)
def test_a_column_that_happens_to_be_named_split(tmp_path: Path, column: list[Any], expected: str) -> None:
    data = table(tmp_path / "x.parquet", instruction=["a", "b"], split=column)
    assert {sample.split for sample in Samples(SPEC, find_rows(SPEC, data))} == {expected}


def test_imagefolder_as_datasets_reads_it(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """With names of columns by the library's rules, from CSV and JSONL, a folder for each split."""
    header = b"input_file_name,output_file_name,instruction\n"
    for split, text in (("train", b"0.png,1.png,red\n1.png,2.png,blue\n"), ("test", b"2.png,0.png,green\n")):
        folder(tmp_path / "data" / split, "metadata.csv", header + text)
    library = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    for split in ("train", "test"):
        rows = open_rows(str(tmp_path / "data"), "local", split, SPEC_COLUMNS)
        for mine, theirs in zip(Samples(SPEC, rows), library[split], strict=True):
            assert mine.instruction == theirs["instruction"] and mine.target is not None
            assert mine.source.tobytes() == theirs["input"].convert("RGB").tobytes()
            assert mine.target.tobytes() == theirs["output"].convert("RGB").tobytes()
    assert tokenize(tmp_path / "data", split="train")[0] == ["red", "blue"]


def test_what_datasets_saved(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """A folder of `save_to_disk`, with and without splits."""
    features = datasets.Features(
        {"input": datasets.Image(), "output": datasets.Image(), "instruction": datasets.Value("string")}
    )
    rows = {
        "input": [{"bytes": image_bytes(row), "path": None} for row in range(3)],
        "output": [{"bytes": image_bytes(9), "path": None}] * 3,
        "instruction": ["a", "b", "c"],
    }
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": saved, "test": saved.select([2])}).save_to_disk(tmp_path / "two")
    assert tokenize(tmp_path / "one") == (["a", "b", "c"], {})
    assert len(find_rows(SPEC, tmp_path / "two", split="test")) == 1
    assert [sample.instruction for sample in Samples(SPEC, find_rows(SPEC, tmp_path / "two"))] == ["a", "b", "c"]
    with pytest.raises(UserError, match="has no split 'dev'; it has train, test"):
        find_rows(SPEC, tmp_path / "two", split="dev")
    wrong = Benchmark("data", "before", "instruction")
    with pytest.raises(UserError, match="has no column 'before'; it has input, output, instruction"):
        find_rows(wrong, tmp_path / "one")
