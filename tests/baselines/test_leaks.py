"""Rows of a benchmark in training data: what is found, what is not, and what the report says of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noise_images import IMAGE, noise, png
from PIL import Image

from baselines import leaks
from baselines.benchmarks.spec import Benchmark
from baselines.leaks import ID, INSTRUCTION, PAIR, same_words
from emu3.errors import UserError
from emu3.train_image_editing.image_rows import Columns
from emu3.train_image_editing.shard_writer import ShardWriter
from emu3.train_image_editing.shards import EditRow

FULL = Benchmark("data", source="input", instruction="instruction", target="output", task="task", id="id")
COLUMNS = Columns(source="before", edited="after", instruction="text")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_train(path: Path, *rows: tuple[bytes | None, bytes | None, str]) -> Path:
    cells = [[None if data is None else {"bytes": data, "path": None} for data in column] for column in zip(
        *((before, after) for before, after, _ in rows), strict=True)]  # fmt: skip
    table = {"before": pa.array(cells[0], IMAGE), "after": pa.array(cells[1], IMAGE), "text": [row[2] for row in rows]}
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture
def compare(make_data: Callable[..., Path], tmp_path: Path) -> Callable[..., list[leaks.Compared]]:
    """Compare five samples, whose sources are noise 0 ... 4 and targets noise 100 ... 104, with training rows."""
    data = make_data(rows=5)

    def run(*train: Path, **options: Any) -> list[leaks.Compared]:
        names = [str(path) for path in train]
        return leaks.run(benchmark=FULL, benchmark_data=data, train_data=names, columns=COLUMNS, **options)

    return run


def found(compared: leaks.Compared) -> dict[str, str]:
    return {finding.sample: finding.kind for finding in compared.findings}


def test_images_and_instructions_are_found(
    compare: Callable[..., list[leaks.Compared]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the kinds: other bytes of equal pixels are equal, either column counts, other words are another edit."""
    stranger = png(noise(50))
    train = write_train(
        tmp_path / "train.parquet",
        (encoded(noise(0), "TIFF"), stranger, "Change  number 0!"),
        (stranger, png(noise(1)), "something else"),
        (stranger, png(noise(102)), "something else"),
        (stranger, None, "CHANGE NUMBER 3"),
        (stranger, stranger, "nothing of it"),
        (b"broken", stranger, "x"),
    )
    [compared] = compare(train, output=tmp_path / "leaks.json")
    assert found(compared) == {
        "sample-0": PAIR,
        "sample-1": leaks.IMAGE,
        "sample-2": leaks.IMAGE,
        "sample-3": INSTRUCTION,
    }
    assert (compared.rows, compared.unreadable) == (6, 1)
    said = capsys.readouterr().out
    assert "data: 5 samples with 10 different images" in said
    assert f"compared with {train}: 6 rows, 1 of them not readable (images and instructions)" in said
    assert (
        f"1 samples: an image of theirs and their instruction occur in one training row\n  sample-0: {train} row 0"
        in said
    )
    assert "not seen: images that were resized" in said
    [written] = json.loads((tmp_path / "leaks.json").read_text())
    assert written["findings"][0] == {"sample": "sample-0", "kind": PAIR, "row": "0"}


def test_images_compressed_again_are_not_found(compare: Callable[..., list[leaks.Compared]], tmp_path: Path) -> None:
    """What the report says that it cannot see."""
    train = write_train(tmp_path / "t.parquet", (encoded(noise(0), "JPEG", quality=90), None, "x"))
    assert found(compare(train)[0]) == {}


def test_a_turned_image_is_the_upright_one(compare: Callable[..., list[leaks.Compared]], tmp_path: Path) -> None:
    """Guards the shortcut by size: a header tells the size before the camera's note is followed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noise(7, 24, 16)
    turned = encoded(image.rotate(90, expand=True), "PNG", exif=exif)
    data = tmp_path / "tall.parquet"
    pq.write_table(
        pa.table({"input": pa.array([{"bytes": png(image), "path": None}], IMAGE), "instruction": ["a"]}), data
    )
    spec = Benchmark("data", source="input", instruction="instruction")
    train = write_train(tmp_path / "t.parquet", (turned, None, "x"))
    [compared] = leaks.run(benchmark=spec, benchmark_data=data, train_data=[str(train)], columns=COLUMNS)
    assert found(compared) == {"0": leaks.IMAGE}


def test_images_of_other_sizes_are_not_decoded(
    compare: Callable[..., list[leaks.Compared]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards speed: decoding is what costs, and a million images have to pass."""
    train = write_train(tmp_path / "t.parquet", *((png(noise(n, 32, 16)), png(noise(n)), "x") for n in (8, 9)))
    decoded: list[str] = []
    monkeypatch.setattr(leaks, "read_image", lambda *_: decoded.append("one") or noise(8))
    compare(train)
    assert len(decoded) == 2


def test_tokenized_data_are_compared_by_words_and_ids(
    compare: Callable[..., list[leaks.Compared]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = np.zeros((2, 2), np.uint16)
    writer = ShardWriter(tmp_path / "tokens", {"vision_sha256": "x"}, shards=1)
    writer.write(0, [EditRow("sample-4", codes, codes, "x"), EditRow("a", codes, codes, "change number 1")], [])
    writer.finish()
    compared, other = compare(tmp_path / "tokens", write_train(tmp_path / "t.parquet", (png(noise(4)), None, "x")))
    assert found(compared) == {"sample-4": ID, "sample-1": INSTRUCTION}
    assert found(other) == {"sample-4": leaks.IMAGE}
    said = capsys.readouterr().out
    assert "2 rows (instructions and ids; its images are codes)" in said
    # The worst of each sample, once.
    assert "0 samples: their id occurs" in said and "1 samples: an image of theirs occurs" in said


def test_row_numbers_are_no_ids(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Guards against row 3 of one dataset being taken for row 3 of another."""
    train = write_train(tmp_path / "t.parquet", *((png(noise(60 + n)), None, "x") for n in range(5)))
    spec = Benchmark("data", source="input", instruction="instruction")
    [compared] = leaks.run(benchmark=spec, benchmark_data=make_data(), train_data=[str(train)], columns=COLUMNS)
    assert compared.findings == []


def test_what_is_not_there_is_named(compare: Callable[..., list[leaks.Compared]], tmp_path: Path) -> None:
    train = write_train(tmp_path / "t.parquet", (None, None, "x"))
    with pytest.raises(UserError, match="has no column 'nothing'; it has before, after, text"):
        leaks.run(benchmark=FULL, benchmark_data=tmp_path / "data.parquet", train_data=[str(train)],
                  columns=Columns(source="nothing", instruction="text"))  # fmt: skip


@pytest.mark.parametrize("text", ["Make it RED.", " make  it\nred", "ｍake it red!"])
def test_equal_words(text: str) -> None:
    assert same_words(text) == "make it red"


def test_the_command_line(
    make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark against itself: everything leaks."""
    data = make_data(rows=2)
    arguments = f"leaks --benchmark-data {data} --benchmark-columns input instruction output --train-data {data}"
    monkeypatch.setattr("sys.argv", arguments.split())
    leaks.main()
    assert "2 samples: an image of theirs and their instruction occur" in capsys.readouterr().out
