"""Tokenizing: nothing lost, nothing twice, nothing silent, whoever does the work and however often it stops."""

from __future__ import annotations

import io
import json
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
from sft_world import image_bytes, save_vision

from emu3.errors import UserError
from emu3.files import place_from
from emu3.run_folder import owned
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.images import fit_image
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.random_vision import random_vqvae, save_baai
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing import prepare_data
from emu3.train_image_editing.prepare_data import PrepareArguments, chosen_rows, prepare
from emu3.train_image_editing.shard_writer import ShardWriter
from emu3.train_image_editing.shards import read_rows
from emu3.train_image_editing.verify import verify

AREA = 32 * 32
REAL = Path(__file__).parents[3] / "../shared/data/aurora-bench-dev.parquet"


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
            "before": {"bytes": image_bytes(index // 3), "path": None},
            "after": {"bytes": image_bytes(100 + index, width=40 + 8 * (index % 2)), "path": None},
            "instruction": f"make it {index}",
            "why": f"because {index}" if index % 2 else None,
            "task": "colour",
        }
        for index in range(10)
    ]
    rows[2]["before"]["bytes"] = image_bytes(2)[:100]
    rows[4]["after"]["bytes"] = b"no image"
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


def real(arguments: PrepareArguments) -> PrepareArguments:
    return replace(
        arguments, dataset_name=str(REAL), original_image_key="input", edited_image_key="output", cot_keys=[],
        id_key=None, task_key="source",
    )  # fmt: skip


def test_rows_hold_the_codes_of_their_own_images(arguments: PrepareArguments, pairs: Path, vision: Path) -> None:
    """Batching by size and sharing equal sources must not swap images between rows."""
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
    place = place_from(arguments.output_path, manifest["vision"])
    assert Path(place).samefile(vision), "whoever trains on the data finds the vision tokenizer of its codes"


def test_broken_rows_are_recorded_with_their_reason(arguments: PrepareArguments) -> None:
    manifest = prepare(arguments)
    assert manifest is not None
    why = {row["id"]: row["why"] for row in manifest["failed"]}
    assert list(why) == ["row-2", "row-4", "row-5"]
    assert why["row-2"].startswith("before cannot be read as an image")
    assert why["row-4"].startswith("after cannot be read as an image")
    assert why["row-5"] == "empty instruction"
    assert (manifest["rows"], manifest["rows_with_target"], manifest["image_area"]) == (7, 5, AREA)


def test_an_image_too_thin_for_one_code_is_a_broken_row(
    arguments: PrepareArguments, tmp_path: Path, pairs: Path
) -> None:
    rows = pq.read_table(pairs).to_pylist()[:2]
    rows[0]["before"]["bytes"] = image_bytes(0, width=400, height=2)
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
    written: list[int] = []
    plain_write = ShardWriter.write

    def write(self: ShardWriter, index: int, *rows: Any) -> None:
        if len(written) == 2:
            written.append(-1)
            raise KeyboardInterrupt
        written.append(index)
        plain_write(self, index, *rows)

    monkeypatch.setattr(ShardWriter, "write", write)
    with pytest.raises(KeyboardInterrupt):
        prepare(again)
    assert list(files(tmp_path / "again")) == [f"shard-{index:05d}-of-00004.parquet" for index in (0, 1)]
    prepare(again)
    assert written == [0, 1, -1, 2, 3]
    assert files(tmp_path / "again") == files(tmp_path / "out")


def test_changed_data_under_the_same_path_is_refused(arguments: PrepareArguments, pairs: Path) -> None:
    """A restarted run would put shards of the old and of the new data into one folder."""
    prepare(arguments)
    table = pq.read_table(pairs)
    Path(arguments.output_path, "shard-00003-of-00004.parquet").unlink()
    pairs.touch()
    assert prepare(arguments) is not None
    pq.write_table(table.set_column(3, "instruction", pa.array([f"make it not {i}" for i in range(10)])), pairs)
    message = r'holds a run with data\.contents="[0-9a-f]{64}", this one has data\.contents=.*: tokenize into'
    with pytest.raises(UserError, match=message):
        prepare(arguments)


def test_an_image_folder_gives_the_codes_of_the_same_images_in_parquet(
    arguments: PrepareArguments, pairs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = []
    for row in pq.read_table(pairs).to_pylist():
        for side in ("before", "after"):
            if row[side] is not None:
                (folder / f"{row['key']}-{side}.png").write_bytes(row[side]["bytes"])
                row[side] = f"{row['key']}-{side}.png"
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    of_folder = prepare(replace(arguments, dataset_name=str(folder), output_path=str(tmp_path / "of_folder")))
    of_parquet = prepare(arguments)
    assert of_folder is not None and of_parquet is not None
    assert of_folder["failed"] == of_parquet["failed"]
    for one, other in zip(read_rows(tmp_path / "of_folder"), read_rows(arguments.output_path), strict=True):
        assert (one.id, one.instruction, one.cot, one.task) == (other.id, other.instruction, other.cot, other.task)
        np.testing.assert_array_equal(one.source, other.source)
        np.testing.assert_array_equal(one.edited, other.edited)  # type: ignore[arg-type]  # None equals None


def test_the_seed_chooses_as_datasets_does() -> None:
    """Benchmarks are published as shuffle(seed=42) and the first 1,000; files are read from front to back."""
    shuffled = datasets.Dataset.from_dict({"row": list(range(50))}).shuffle(seed=42)["row"][:20]
    assert chosen_rows(50, 42, 20).tolist() == sorted(shuffled)
    assert chosen_rows(50, None, 3).tolist() == [0, 1, 2]


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


def test_an_empty_dataset_is_an_error(arguments: PrepareArguments, pairs: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(pairs).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="is empty"):
        prepare(replace(arguments, dataset_name=str(tmp_path / "empty.parquet")))
    assert not Path(arguments.output_path).exists()


def test_a_dataset_of_broken_rows_leaves_nothing_behind(arguments: PrepareArguments, pairs: Path) -> None:
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
    with owned(Path(arguments.output_path)), pytest.raises(UserError, match="is in use by"):
        prepare_data.main()
    prepare_data.main()
    assert "7 rows, 5 with a target, 3 failed" in capsys.readouterr().out
    assert {key for row in read_rows(arguments.output_path) for key in row.cot} == {"why"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nope", "1"], "unknown option --nope"),
        (["--image-area", "big"], "--image-area.*invalid int value: 'big'"),
        (["--source", "ftp"], "--source.*invalid choice"),
        ([], "required: .*--data"),
    ],
)
def test_wrong_flags_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str) -> None:
    """The library prints its whole usage, or a traceback for a flag that it does not know."""
    paths = ["--dataset-name", "a", "--output-path", "b", "--model-path", "c"] if flags else []
    monkeypatch.setattr(sys, "argv", ["prepare_data", *paths, *flags])
    with pytest.raises(UserError, match=message) as error:
        prepare_data.main()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("local_rank", "rank", "device"), [(None, 0, "cuda:0"), (None, 3, "cuda:1"), ("1", 4, "cuda:1"), ("2", 2, "cuda:0")]
)
def test_workers_spread_over_the_gpus(
    arguments: PrepareArguments, monkeypatch: pytest.MonkeyPatch, local_rank: str | None, rank: int, device: str
) -> None:
    """Plain processes have no LOCAL_RANK, and would all take the first."""
    if local_rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    devices: list[str] = []

    def codec(vq: StillVQ, device: str) -> ImageCodec:
        devices.append(device)
        return ImageCodec(vq)

    monkeypatch.setattr(prepare_data, "ImageCodec", codec)
    monkeypatch.setattr(prepare_data.torch.cuda, "device_count", lambda: 2)
    prepare(replace(arguments, rank=rank, world_size=8))
    assert devices == [device]


@pytest.mark.skipif(not REAL.exists(), reason="the real sample is not here")
def test_real_rows_with_a_restart_in_the_middle(arguments: PrepareArguments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of many sizes and rows without a target, which RL and evaluation do not need."""
    arguments = replace(real(arguments), shard_rows=30)
    plain_write = ShardWriter.write

    def write(self: ShardWriter, index: int, *rows: Any) -> None:
        if index == 4:
            raise KeyboardInterrupt
        plain_write(self, index, *rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "write", write)
        prepare(arguments)
    finished = files(Path(arguments.output_path))
    assert len(finished) == 4
    manifest = prepare(arguments)
    assert manifest is not None
    assert finished.items() <= files(Path(arguments.output_path)).items()
    table = pq.read_table(REAL, columns=["output", "instruction", "source"])
    targets = 200 - table["output"].null_count
    assert 0 < targets < 200
    assert (manifest["rows"], manifest["rows_with_target"], manifest["failed"]) == (200, targets, [])
    assert verify(Path(arguments.output_path)).startswith(f"{arguments.output_path}: 200 rows, {targets} with a target")
    assert [row.instruction for row in read_rows(arguments.output_path)] == table["instruction"].to_pylist()


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real sample is not here")
def test_real_rows_with_a_tokenizer_of_the_published_size_and_layout(
    arguments: PrepareArguments, tmp_path: Path
) -> None:
    """The 270 million weights, names and shapes of BAAI/Emu3-VisionTokenizer, in images small enough for a CPU."""
    save_baai(random_vqvae(), tmp_path / "published")
    arguments = replace(
        real(arguments), model_path=str(tmp_path / "published"), image_area=64 * 64, limit=8, shard_rows=4
    )
    assert prepare(replace(arguments, rank=1, world_size=2)) is None
    manifest = prepare(arguments)
    assert manifest is not None
    assert (manifest["rows"], manifest["vision_sha256"]) == (8, weights_digest(arguments.model_path))
    assert verify(Path(arguments.output_path)).startswith(f"{arguments.output_path}: 8 rows")
    assert len(np.unique([code for row in read_rows(arguments.output_path) for code in row.source.ravel()])) > 100
