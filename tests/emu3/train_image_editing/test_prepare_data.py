"""Tokenising: nothing lost, nothing twice, nothing silent, whoever does the work and however often it stops."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sft_world import picture, save_vision

from emu3.errors import UserError
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.images import fit_image
from emu3.tokenizer.model import StillVQ
from emu3.train_image_editing import prepare_data
from emu3.train_image_editing.prepare_data import PrepareArguments, prepare, row_order
from emu3.train_image_editing.shards import read_rows

AREA = 32 * 32
REAL = Path(__file__).parents[3] / "../shared/data/aurora-bench-dev.parquet"


@pytest.fixture(autouse=True)
def no_cache_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "vision"
    save_vision(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """10 rows: 1 with a broken source, 1 with a broken target, 1 without instruction, 2 without target."""
    rows: list[dict[str, Any]] = [
        {
            "key": f"row-{index}",
            "before": {"bytes": picture(index // 3), "path": None},
            "after": {"bytes": picture(100 + index, width=40 + 8 * (index % 2)), "path": None},
            "instruction": f"make it {index}",
            "why": f"because {index}" if index % 2 else None,
            "task": "colour",
        }
        for index in range(10)
    ]
    rows[2]["before"]["bytes"] = picture(2)[:100]
    rows[4]["after"]["bytes"] = b"no picture"
    rows[5]["instruction"] = "  "
    rows[6]["after"] = rows[7]["after"] = None
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def arguments(tmp_path: Path, vision: Path, pairs: Path) -> PrepareArguments:
    return PrepareArguments(
        dataset_name=str(pairs),
        output_path=str(tmp_path / "out"),
        model_path=str(vision),
        original_image_key="before",
        edited_image_key="after",
        cot_keys=["why"],
        id_key="key",
        task_key="task",
        source="local",
        image_area=AREA,
        shard_rows=3,
        rank=0,
        world_size=1,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_rows_hold_the_codes_of_their_own_pictures(arguments: PrepareArguments, pairs: Path, vision: Path) -> None:
    """Batching by size and sharing equal sources must not swap pictures between rows."""
    manifest = prepare(arguments)
    assert manifest is not None
    rows = read_rows(arguments.output_path)
    originals = {row["key"]: row for row in pq.read_table(pairs).to_pylist()}
    codec = ImageCodec(StillVQ.from_pretrained(vision))
    assert [row.id for row in rows] == [f"row-{index}" for index in (0, 1, 3, 6, 7, 8, 9)]
    for row in rows:
        original = originals[row.id]
        for cell, codes in ((original["before"], row.source), (original["after"], row.edited)):
            if cell is None:
                assert codes is None
            else:
                image = fit_image(Image.open(io.BytesIO(cell["bytes"])), AREA, codec.factor)
                np.testing.assert_array_equal(codec.encode([image])[0], codes)
        assert row.instruction == original["instruction"]
        assert row.cot == ({"why": original["why"]} if original["why"] else {})
        assert row.task == "colour"


def test_broken_rows_are_recorded_with_their_reason(arguments: PrepareArguments) -> None:
    manifest = prepare(arguments)
    assert manifest is not None
    why = {row["id"]: row["why"] for row in manifest["failed"]}
    assert list(why) == ["row-2", "row-4", "row-5"]
    assert why["row-2"].startswith("before cannot be read as an image")
    assert why["row-4"].startswith("after cannot be read as an image")
    assert why["row-5"] == "empty instruction"
    assert (manifest["rows"], manifest["rows_with_target"], manifest["image_area"]) == (7, 5, AREA)


def test_a_picture_too_thin_for_one_code_is_a_broken_row(
    arguments: PrepareArguments, tmp_path: Path, pairs: Path
) -> None:
    rows = pq.read_table(pairs).to_pylist()[:2]
    rows[0]["before"]["bytes"] = picture(0, width=400, height=2)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "thin.parquet")
    manifest = prepare(replace(arguments, dataset_name=str(tmp_path / "thin.parquet")))
    assert manifest is not None
    assert [row["id"] for row in manifest["failed"]] == ["row-0"]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_rows_and_the_bytes_do_not_tell_how_many(
    arguments: PrepareArguments, tmp_path: Path, workers: int
) -> None:
    """The published four processes each did all rows and overwrote each other's list."""
    prepare(arguments)
    parts = [
        prepare(replace(arguments, output_path=str(tmp_path / "parts"), rank=rank, world_size=workers))
        for rank in reversed(range(workers))
    ]
    assert [part is None for part in parts] == [True] * (workers - 1) + [False]
    assert files(tmp_path / "parts") == files(tmp_path / "out")


def test_a_restarted_run_skips_finished_shards_and_ends_with_the_same_bytes(
    arguments: PrepareArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(arguments)
    again = replace(arguments, output_path=str(tmp_path / "again"))
    encoded: list[int] = []
    plain_encode = prepare_data.encode

    def encode(rows: Any, codec: Any) -> Any:
        encoded.append(len(rows))
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return plain_encode(rows, codec)

    monkeypatch.setattr(prepare_data, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        prepare(again)
    assert list(files(tmp_path / "again")) == [f"shard-{index:05d}-of-00004.parquet" for index in (0, 1)]
    prepare(again)
    assert len(encoded) == 3 + 2
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_equal_pictures_of_a_batch_are_encoded_once(
    arguments: PrepareArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    plain_encode = ImageCodec.encode

    def encode(self: ImageCodec, images: Any) -> Any:
        encoded.append(len(images))
        return plain_encode(self, images)

    monkeypatch.setattr(ImageCodec, "encode", encode)
    prepare(replace(arguments, shard_rows=10))
    assert encoded == [4 + 5]  # rows 0, 1, 3, 6, 7, 8, 9 have sources 0, 0, 1, 2, 2, 2, 3 and five targets


def test_the_seed_shuffles_as_datasets_does() -> None:
    """Benchmarks are published as shuffle(seed=42) and the first 1,000."""
    shuffled = datasets.Dataset.from_dict({"row": list(range(50))}).shuffle(seed=42)["row"][:20]
    assert row_order(50, 42, 20).tolist() == list(shuffled)
    assert row_order(50, None, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edited_image_key": "target"}, "no column 'target'; it has key, before"),
        ({"dataset_name": "nowhere.parquet"}, "nowhere.parquet"),
        ({"dataset_name": __file__}, "test_prepare_data.py is not a Parquet file"),
        ({"model_path": "nowhere"}, "nowhere"),
        ({"image_area": 10}, "less than one code"),
        ({"limit": 0}, "at least 1"),
        ({"rank": 2}, "--world-size"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: PrepareArguments, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(replace(arguments, **change))
    assert not Path(arguments.output_path).exists()


def test_an_empty_data_set_is_an_error(arguments: PrepareArguments, pairs: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(pairs).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="is empty"):
        prepare(replace(arguments, dataset_name=str(tmp_path / "empty.parquet")))
    assert not Path(arguments.output_path).exists()


def test_a_data_set_of_broken_rows_leaves_nothing_behind(arguments: PrepareArguments, pairs: Path) -> None:
    """Otherwise the run with the right column, into the same folder, is refused for the shards of this one."""
    broken = pq.read_table(pairs).slice(2, 1)
    pq.write_table(broken, pairs)
    with pytest.raises(UserError, match="not one of 1 rows could be used; row row-2: before cannot be read"):
        prepare(arguments)
    assert not list(Path(arguments.output_path).iterdir())


def test_the_published_flags_work(
    arguments: PrepareArguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--dataset-name", arguments.dataset_name, "--output-path", arguments.output_path,
        "--model-path", arguments.model_path, "--original-image-key", "before", "--edit-instruction", "instruction",
        "--edited-image", "after", "--CoT-keys", "why", "--image-area", str(AREA), "--random-seed", "1",
        "--source", "local", "--id-key", "key",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["prepare_data", *flags])
    prepare_data.main()
    assert "7 rows, 5 with a target, 3 failed" in capsys.readouterr().out
    assert {key for row in read_rows(arguments.output_path) for key in row.cot} == {"why"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nope", "1"], "unknown option --nope"),
        (["--image-area", "big"], "--image-area.*invalid int value: 'big'"),
        (["--source", "ftp"], "--source.*invalid choice"),
        ([], "required: --dataset"),
    ],
)
def test_wrong_flags_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str) -> None:
    """The library prints its whole usage, or a traceback for a flag that it does not know."""
    paths = ["--dataset-name", "a", "--output-path", "b", "--model-path", "c"] if flags else []
    monkeypatch.setattr(sys, "argv", ["prepare_data", *paths, *flags])
    with pytest.raises(UserError, match=message) as error:
        prepare_data.main()
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not REAL.exists(), reason="the real sample is not here")
def test_real_rows_without_a_target_are_kept(arguments: PrepareArguments) -> None:
    """RL and evaluation need only source and instruction."""
    manifest = prepare(
        replace(
            arguments,
            dataset_name=str(REAL),
            original_image_key="input",
            edited_image_key="output",
            cot_keys=[],
            id_key=None,
            task_key="source",
            limit=40,
            random_seed=0,
        )
    )
    assert manifest is not None
    targets = pq.read_table(REAL, columns=["output"]).column(0).take(row_order(200, 0, 40))
    assert 0 < targets.null_count < 40
    assert (manifest["rows"], manifest["rows_with_target"]) == (40, 40 - targets.null_count)
