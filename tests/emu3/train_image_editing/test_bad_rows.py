"""One bad row is a row: it is recorded with a reason that says what is there, and the others are kept, by the command
that tokenizes; by the one that evaluates, file and row are named before the first image is made."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sft_world import image_bytes, save_vision

from baselines.benchmarks.samples import Samples, columns_of, find_rows
from baselines.benchmarks.spec import Benchmark
from emu3.errors import UserError
from emu3.train_image_editing.image_rows import IMAGE_CELL, LFS_POINTER
from emu3.train_image_editing.open_rows import open_rows, visible_files
from emu3.train_image_editing.prepare_data import PrepareArguments, prepare
from emu3.train_image_editing.shards import read_rows

SPEC = Benchmark("data", source="input", instruction="instruction", target="output")
SPEC_COLUMNS = columns_of(SPEC)
HALF = "add a smile \ud83d"


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    save_vision(folder)
    return folder


@pytest.fixture
def tokenize(vision: Path, tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """The instructions of the rows that were tokenized, and the reasons of the others by their ids."""

    def run(data: Path, **flags: Any) -> tuple[list[str], dict[str, str]]:
        arguments = PrepareArguments(
            dataset_name=str(data), source="local", output_path=str(tmp_path / "shards"), model_path=str(vision),
            original_image_key="input", edited_image_key="output", image_area=256, **flags,
        )  # fmt: skip
        manifest = prepare(arguments)
        assert manifest is not None
        kept = [row.instruction for row in read_rows(tmp_path / "shards")]
        return kept, {row["id"]: row["why"] for row in manifest["failed"]}

    return run


def cells(count: int, first: int = 0) -> pa.Array:
    return pa.array([{"bytes": image_bytes(first + row), "path": None} for row in range(count)], IMAGE_CELL)


def table(path: Path, **columns: Any) -> Path:
    count = len(next(iter(columns.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"input": cells(count), "output": cells(count, 50)} | columns), path)
    return path


def folder(path: Path, name: str, text: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        (path / f"{number}.png").write_bytes(image_bytes(number))
    (path / name).write_bytes(text)
    return path


def raw_texts(*texts: bytes) -> pa.Array:
    """Text cells that nobody has checked."""
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(texts)))


def evaluation_fails(data: Path, spec: Benchmark = SPEC) -> str:
    with pytest.raises(UserError) as error:
        Samples(spec, find_rows(spec, data))
    message = str(error.value)
    assert "\n" not in message and str(data) in message
    return message


# Text is checked where it enters.


def test_half_an_emoji_in_a_jsonl(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """Guards 4,096 encoded rows that were lost, at every restart, when the shard was written."""
    rows = [{"input": "0.png", "output": "1.png", "instruction": text} for text in ("make it blue", HALF)]
    data = folder(tmp_path / "data", "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    kept, failed = tokenize(data)
    assert kept == ["make it blue"]
    assert failed == {"1": r"instruction is not text that UTF-8 can hold: '\ud83d' at 12 is half a character"}
    assert "metadata.jsonl: row 1: instruction is not text that UTF-8 can hold" in evaluation_fails(data)


def test_bytes_that_are_not_utf8_in_parquet(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    data = table(tmp_path / "bad.parquet", instruction=raw_texts(b"make it r\xe9d", b"fine text"))
    kept, failed = tokenize(data)
    assert kept == ["fine text"] and failed == {"0": "instruction is not UTF-8: byte 0xe9 at 9"}
    assert evaluation_fails(data).endswith("bad.parquet: row 0: instruction is not UTF-8: byte 0xe9 at 9")


def test_bytes_that_are_not_utf8_in_csv(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    first = b'input,output,instruction\n0.png,1.png,"say ""hi"",\nthen NA"\n'
    lines = first + b"0.png,1.png,r\xe9d\n0.png,1.png,\n0.png,1.png,a,b\n"
    data = folder(tmp_path / "data", "edits.csv", lines)
    kept, failed = tokenize(data)
    assert kept == ['say "hi",\nthen NA']
    assert failed == {
        "1": "instruction is not UTF-8: byte 0xe9 at 1",
        "2": "empty instruction",
        "3": "its line has 4 cells, the header 3",
    }


LINE = b'{"input": "0.png", "output": "1.png", "instruction": "make it red"}\n'


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


def test_lines_that_could_mean_two_things_are_bad_rows(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    text = LINE + LINE.replace(b'"output"', b'"input"', 1) + LINE.replace(b"make it red", b"caf\xe9")
    instructions, reasons = tokenize(folder(tmp_path / "data", "metadata.jsonl", text))
    assert instructions == ["make it red"]
    assert reasons == {
        "1": "its line is not JSON: a key occurs twice",
        "2": "its line is not UTF-8: byte 0xe9 at 57",
    }


@pytest.mark.parametrize("text", ["\u200b", "\u00a0 \u3000", "\ufeff", "\u2060\u200e"])
def test_a_text_that_shows_nothing_is_empty(tokenize: Callable[..., Any], tmp_path: Path, text: str) -> None:
    data = table(tmp_path / "data.parquet", instruction=["paint it", text])
    assert tokenize(data) == (["paint it"], {"1": "empty instruction"})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("https://example.org/a.png", "input: holds an address (https://example.org/a.png...), not the name of a file"),
        ("file:///etc/passwd", "input: holds an address (file:///etc/passwd...), not the name of a file"),
        ("iVBORw0KGgo" * 500, "input: holds text (base64?), not the name of a file"),
        ("gone.png", "input: 'gone.png' is a link to what does not exist"),
        ("x" * 90 + ".png", f"input: '{'x' * 80}' does not exist"),
    ],
)
def test_what_is_no_file_is_named(tokenize: Callable[..., Any], tmp_path: Path, name: str, why: str) -> None:
    """Guards a reason of a megabyte, and git-annex links, whose file "does not exist" though it is listed."""
    data = folder(tmp_path / "data", "metadata.jsonl", LINE + LINE.replace(b"0.png", name.encode()))
    (data / "gone.png").symlink_to(".git/annex/objects/x")
    assert tokenize(data) == (["make it red"], {"1": why})


@pytest.mark.parametrize("column", ["id", "task", "why"])
def test_every_text_is_checked(tokenize: Callable[..., Any], tmp_path: Path, column: str) -> None:
    """An id that cannot be written would end the manifest too: the row is called by its number."""
    texts = {name: raw_texts(b"a", b"b\xff") if name == column else ["a", "b"] for name in ("id", "task", "why")}
    data = table(tmp_path / "bad.parquet", instruction=["x", "y"], **texts)
    kept, failed = tokenize(data, id_key="id", task_key="task", cot_keys=["why"])
    assert kept == ["x"]
    assert failed == {"1" if column == "id" else "b": f"{column} is not UTF-8: byte 0xff at 1"}


def test_a_cell_that_python_cannot_hold_is_a_bad_row(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    days = pa.array([0, 2**31 - 1], pa.date32())
    lists = pa.ListArray.from_arrays([0, 1, 2], raw_texts(b"a", b"\xff"))
    for name, column in (("days", days), ("lists", lists)):
        data = table(tmp_path / f"{name}.parquet", instruction=["x", "y"], **{name: column})
        kept, failed = tokenize(data, task_key=name)
        assert kept == ["x"] and failed["1"].startswith(f"{name} cannot be read: ")
        for path in (tmp_path / "shards").iterdir():
            path.unlink()


def test_captions_are_checked_too(tmp_path: Path) -> None:
    spec = Benchmark("data", "input", "instruction", source_caption="shows", id="key")
    data = table(tmp_path / "bad.parquet", instruction=["x", "y"], key=["k", "l"], shows=raw_texts(b"a", b"\xc3"))
    assert evaluation_fails(data, spec).endswith("bad.parquet: row l: shows is not UTF-8: byte 0xc3 at 0")


def test_binary_cells_that_are_utf8_are_text(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    binary = pa.array(["größer".encode(), "更大".encode(), b"\xff"], pa.binary())
    kept, failed = tokenize(table(tmp_path / "binary.parquet", instruction=binary))
    assert kept == ["größer", "更大"] and list(failed) == ["2"]


# What is in a cell that should hold something else.


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (base64.b64encode(image_bytes(0)).decode(), "holds text (base64?), not an image"),
        ("images/1.png", "holds text ('images/1.png'), not an image"),
        ("https://example.org/1.png", "holds an address (https://example.org/1.png...), not an image"),
        ("data:image/png;base64,AAAA", "holds an address (data:image/png;base64,AAAA...), not an image"),
        ({"bytes": None, "path": "1.png"}, "holds the path '1.png' without the image's bytes, not an image"),
        ({"bytes": b"", "path": None}, "holds nothing, not an image"),
        ({"url": "x", "size": 3}, "holds a dict of url, size, not an image"),
        ([1, 2, 3], "holds a list of ints, not an image"),
        (LFS_POINTER + b"v1\n", "is a git-lfs pointer, not the image: fetch it with `git lfs pull`"),
        (7, "holds a int, not an image"),
    ],
)
def test_what_is_no_image_is_named(tokenize: Callable[..., Any], tmp_path: Path, cell: Any, why: str) -> None:
    good = table(tmp_path / "data/good.parquet", instruction=["good"])
    pq.write_table(
        pa.table({"input": [cell], "output": cells(1), "instruction": ["bad"]}), good.with_name("odd.parquet")
    )
    kept, failed = tokenize(tmp_path / "data")
    assert kept == ["good"] and failed == {"1": f"input {why}"}


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ([{"from": "human", "value": "make it red"}], "holds a list of dicts, not text"),
        ({"en": "make it red"}, "holds a dict of en, not text"),
        ([["make", "it"]], "holds a list of lists, not text"),
        (7, "holds a int, not text"),
    ],
)
def test_what_is_no_text_is_named(tokenize: Callable[..., Any], tmp_path: Path, cell: Any, why: str) -> None:
    good = table(tmp_path / "data/good.parquet", instruction=["good"])
    pq.write_table(
        pa.table({"input": cells(1), "output": cells(1), "instruction": [cell]}), good.with_name("odd.parquet")
    )
    kept, failed = tokenize(tmp_path / "data")
    assert kept == ["good"] and failed == {"1": f"instruction {why}"}


def test_of_a_list_of_texts_the_first_is_taken(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """Instructions and captions alike."""
    data = table(tmp_path / "x.parquet", instruction=[["a", "b"], [], [None]], shows=[["one", "two"], [], ["three"]])
    kept, failed = tokenize(data)
    assert kept == ["a"] and set(failed.values()) == {"empty instruction"}
    one = table(tmp_path / "y.parquet", instruction=[["a", "b"]], shows=[["one", "two"]])
    spec = Benchmark("data", "input", "instruction", source_caption="shows")
    assert Samples(spec, find_rows(spec, one))[0].source_caption == "one"


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


def test_what_looks_alike_has_equal_codes(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """Guards colours under full transparency, and 16-bit grey that came out white."""
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    alpha = np.zeros((64, 64, 4), np.uint8)
    alpha[16:48, 16:48] = (200, 40, 30, 255)
    green = np.where(alpha[..., 3:] > 0, alpha, np.array([13, 250, 7, 0], np.uint8))
    stored = []
    for pixels in (ramp.astype(np.uint16), (ramp / 257).astype(np.uint8), alpha, green):
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
        stored.append(buffer.getvalue())
    data = table(tmp_path / "modes.parquet", input=pa.array(stored), instruction=list("abcd"))
    tokenize(data)
    codes = [row.source.tolist() for row in read_rows(tmp_path / "shards")]
    assert codes[0] == codes[1] and codes[2] == codes[3] and codes[0] != codes[2]


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


def test_nothing_is_no_text_however_it_is_written(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """Guards "nan" as a chain of thought, and the spelling of bytes in Python."""
    why = pa.array([float("nan"), 2.0])
    data = table(tmp_path / "data.parquet", instruction=["a", "b"], why=why, more=[[b"\xff"], [b"ok"]])
    tokenize(data, cot_keys=["why"])
    assert [dict(row.cot) for row in read_rows(tmp_path / "shards")] == [{}, {"why": "2.0"}]
    shutil.rmtree(tmp_path / "shards")
    assert tokenize(data, cot_keys=["more"]) == (["b"], {"0": "more is not UTF-8: byte 0xff at 0"})
    assert [dict(row.cot) for row in read_rows(tmp_path / "shards")] == [{"more": '["ok"]'}]


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


def test_an_area_that_no_memory_holds_is_refused(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    data = table(tmp_path / "x.parquet", instruction=["a"])
    with pytest.raises(UserError, match="--image-area: expected at least 1 and at most 16777216, got 1000000000000"):
        PrepareArguments(dataset_name=str(data), output_path=str(tmp_path), image_area=10**12)
