"""One bad row is a row: it is recorded with a reason that says what is there, and the others are kept, by the command
that tokenizes; by the one that evaluates, file and row are named before the first image is made."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from odd_data import LINE, cells, evaluation_fails, folder, table
from PIL import Image
from sft_world import image_bytes

from baselines.benchmarks.samples import Samples, find_rows
from baselines.benchmarks.spec import Benchmark
from emu3.errors import UserError
from emu3.train_image_editing.image_rows import LFS_POINTER
from emu3.train_image_editing.prepare_data import PrepareArguments
from emu3.train_image_editing.shards import read_rows

HALF = "add a smile \ud83d"


def raw_texts(*texts: bytes) -> pa.Array:
    """Text cells that nobody has checked."""
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(texts)))


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


def test_nothing_is_no_text_however_it_is_written(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    """Guards "nan" as a chain of thought, and the spelling of bytes in Python."""
    why = pa.array([float("nan"), 2.0])
    data = table(tmp_path / "data.parquet", instruction=["a", "b"], why=why, more=[[b"\xff"], [b"ok"]])
    tokenize(data, cot_keys=["why"])
    assert [dict(row.cot) for row in read_rows(tmp_path / "shards")] == [{}, {"why": "2.0"}]
    shutil.rmtree(tmp_path / "shards")
    assert tokenize(data, cot_keys=["more"]) == (["b"], {"0": "more is not UTF-8: byte 0xff at 0"})
    assert [dict(row.cot) for row in read_rows(tmp_path / "shards")] == [{"more": '["ok"]'}]


def test_an_area_that_no_memory_holds_is_refused(tokenize: Callable[..., Any], tmp_path: Path) -> None:
    data = table(tmp_path / "x.parquet", instruction=["a"])
    with pytest.raises(UserError, match="--image-area: expected at least 1 and at most 16777216, got 1000000000000"):
        PrepareArguments(dataset_name=str(data), output_path=str(tmp_path), image_area=10**12)
