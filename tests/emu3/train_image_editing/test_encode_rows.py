"""Windows, threads and shared images change nothing about a row but the time that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sft_world import image_bytes, save_vision

from emu3.errors import UserError
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.model import StillVQ
from emu3.train_image_editing import prepare_data
from emu3.train_image_editing.image_rows import BadRow, Columns
from emu3.train_image_editing.prepare_data import WINDOWS_AHEAD, RowEncoder
from emu3.train_image_editing.shard_writer import FailedRow
from emu3.train_image_editing.shards import EditRow

AREA = 32 * 32
COLUMNS = Columns(source="a", instruction="text", edited="b", cot=("why",))


class Source:
    """30 rows in seven sizes; every third shares its source with the two before, row 13 is broken."""

    contents = ""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.damaged_from = 30

    def __len__(self) -> int:
        return 30

    def read(self, indices: Iterable[int]) -> Iterator[dict[str, Any] | BadRow]:
        for index in indices:
            self.asked.append(int(index))
            if index >= self.damaged_from:
                raise UserError("the disk is gone")
            box = f"see [0, 10, {40 + 8 * (index // 3 % 7)}, 40]"
            source = image_bytes(int(index) // 3, width=40 + 8 * (index // 3 % 7))
            values = {"a": source, "b": image_bytes(100 + int(index)), "text": f"{index}", "why": box}
            yield BadRow("torn") if index == 13 else values


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> ImageCodec:
    folder = tmp_path_factory.mktemp("world") / "vision"
    save_vision(folder)
    return ImageCodec(StillVQ.from_pretrained(folder))


@pytest.fixture
def encoded(codec: ImageCodec, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each call of the codec."""
    counts: list[int] = []
    plain = ImageCodec.encode

    def encode(self: ImageCodec, images: Any) -> Any:
        counts.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(ImageCodec, "encode", encode)
    return counts


def windows_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_data, "WINDOW_PIXELS", 2 * AREA * rows)


def run(
    codec: ImageCodec, parts: dict[int, Any], progress: Any = int
) -> dict[int, tuple[list[EditRow], list[FailedRow]]]:
    encoder = RowEncoder(Source(), COLUMNS, codec, AREA)
    parts = {shard: np.array(rows) for shard, rows in parts.items()}
    return {shard: (edits, failed) for shard, edits, failed in encoder.shards(parts, progress)}


def same(one: EditRow, other: EditRow) -> bool:
    grids = all(np.array_equal(getattr(one, side), getattr(other, side)) for side in ("source", "edited"))
    return grids and (one.id, one.instruction, one.cot) == (other.id, other.instruction, other.cot)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_any_window_gives_the_rows_of_one_at_a_time(
    codec: ImageCodec, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Ordering by size and splitting into calls must not swap codes between rows."""
    windows_of(rows, monkeypatch)
    monkeypatch.setattr(prepare_data, "IMAGES_PER_TICK", 5)
    shards = run(codec, {3: range(10), 5: range(10, 25)})
    assert list(shards) == [3, 5]
    assert [row.id for row in shards[3][0]] == [str(index) for index in range(10)]
    assert [row.id for row in shards[5][0]] == [str(index) for index in range(10, 25) if index != 13]
    assert (shards[3][1], shards[5][1]) == ([], [FailedRow("13", "torn")])
    for row in shards[3][0] + shards[5][0]:
        [alone] = run(codec, {0: [int(row.id)]})[0][0]
        assert same(row, alone)


def test_an_image_of_a_shard_is_encoded_once_in_whatever_window(
    codec: ImageCodec, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Datasets hold several edits of one image behind each other; but a shard never borrows from another one."""
    windows_of(2, monkeypatch)
    run(codec, {0: range(6), 1: range(6, 12)})
    assert sum(encoded) == (2 + 6) + (2 + 6)
    encoded.clear()
    run(codec, {0: range(5), 1: range(5, 6)})
    assert sum(encoded) == (2 + 5) + (1 + 1)


def test_sources_and_targets_share_a_call(codec: ImageCodec, encoded: list[int]) -> None:
    run(codec, {0: range(12)})
    assert encoded == [4 + 12]


def test_boxes_follow_the_image(codec: ImageCodec) -> None:
    """88 x 40 pixels become 47 x 22, of which 40 x 16 are whole cells."""
    [row] = run(codec, {0: [18]})[0][0]
    assert row.source.shape == (16 // 8, 40 // 8)
    assert row.cot == {"why": "see [0, 6, 40, 16]"}


def test_every_image_is_counted_as_done(codec: ImageCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared and broken ones too: else the bar stops short and the time left is wrong."""
    windows_of(4, monkeypatch)
    monkeypatch.setattr(prepare_data, "IMAGES_PER_TICK", 2)
    done: list[int] = []
    run(codec, {0: range(10, 20)}, done.append)
    assert sum(done) == 20 and max(done) <= 4


class AtOnce(ThreadPoolExecutor):
    """Does what it is given while the caller waits, so that what has been read is no matter of luck."""

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(task(*arguments))
        return done


def test_reading_stays_a_few_windows_ahead(codec: ImageCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million decoded images would not fit into memory."""
    windows_of(2, monkeypatch)
    monkeypatch.setattr(prepare_data, "ThreadPoolExecutor", AtOnce)
    source = Source()
    shards = RowEncoder(source, COLUMNS, codec, AREA).shards({i: np.arange(2 * i, 2 * i + 2) for i in range(15)}, int)
    for done in (1, 2):
        next(shards)
        assert len(source.asked) == 2 * (done + WINDOWS_AHEAD + 1)
    shards.close()


def test_a_source_that_fails_ends_the_run(codec: ImageCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the shards before it, and without waiting for anything."""
    windows_of(2, monkeypatch)
    source = Source()
    source.damaged_from = 9
    shards = RowEncoder(source, COLUMNS, codec, AREA).shards({0: np.arange(6), 1: np.arange(6, 12)}, int)
    assert next(shards)[0] == 0
    with pytest.raises(UserError, match="the disk is gone"):
        next(shards)
