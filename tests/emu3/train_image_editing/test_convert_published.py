"""Published files become shards: nothing lost, nothing silent, whoever does the work and however often it stops."""

from __future__ import annotations

import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_files import AREA, publish, record, saved
from sft_world import save_vision

from emu3.errors import UserError
from emu3.tokenizer.vision_checkpoint import weights_digest
from emu3.train_image_editing import convert_published
from emu3.train_image_editing.convert_published import ConvertArguments, convert
from emu3.train_image_editing.shards import check_alike, read_rows

FILES = 10


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """10 files: number 2 is cut short, number 5 has no instruction, number 7 is listed but not there."""
    files = {f"swap_{index}.pth": saved(record(index)) for index in range(FILES)}
    files["swap_2.pth"] = files["swap_2.pth"][:500]
    files["swap_5.pth"] = saved(record(5, instruction=""))
    publish(tmp_path / "OUT", files)
    (tmp_path / "OUT" / "feature" / "swap_7.pth").unlink()
    return tmp_path / "OUT"


@pytest.fixture
def arguments(out: Path, tmp_path: Path) -> ConvertArguments:
    return ConvertArguments(
        data=str(out), output_path=str(tmp_path / "shards"), image_area=AREA, shard_rows=4, rank=0, world_size=1
    )


def contents(folder: Path | str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def test_shards_hold_the_arrays_of_the_files(arguments: ConvertArguments) -> None:
    convert(arguments)
    rows = read_rows(arguments.output_path)
    good = [index for index in range(FILES) if index not in (2, 5, 7)]
    assert [row.id for row in rows] == [f"swap_{index}" for index in good]
    for index, row in zip(good, rows, strict=True):
        expected = record(index)
        assert (row.instruction, row.cot, row.task) == (expected["instruction"], expected["CoT"], None)
        np.testing.assert_array_equal(row.source, expected["original_image"])
        np.testing.assert_array_equal(row.edited, expected["edited_image"])  # type: ignore[arg-type]


def test_the_list_itself_can_be_trained_on(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards DATAPATH=.../tokenized_datalist.json: the error is a command, after which the path is right."""
    listed = out / "list" / "tokenized_datalist.json"
    for place in (listed, out):
        with pytest.raises(UserError, match=r"holds published \.pth files") as refused:
            read_rows(place)
    module, *flags = str(refused.value).partition("python -m ")[2].split()
    assert module == convert_published.__spec__.name if convert_published.__spec__ else False
    place = flags.index("--model-path")
    monkeypatch.setattr(sys, "argv", ["convert", *flags[:place], "--image-area", str(AREA)])
    convert_published.main()
    rows = read_rows(listed)
    assert (rows.folder, len(rows)) == (out, 7) and len(read_rows(out)) == 7
    assert (out / "feature" / "swap_1.pth").is_file() and "vision tokenizer unknown" in capsys.readouterr().out


def test_bad_files_are_recorded_and_counted(arguments: ConvertArguments, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = convert(arguments)
    assert manifest is not None
    why = {row["id"]: row["why"] for row in manifest["failed"]}
    assert list(why) == ["swap_2.pth", "swap_5.pth", "swap_7.pth"]
    assert why["swap_2.pth"].startswith("not a whole file of torch.save")
    assert why["swap_5.pth"] == "instruction is empty or not a text"
    assert why["swap_7.pth"] == "the file is not there"
    assert (manifest["rows"], manifest["rows_with_target"], manifest["image_area"]) == (7, 7, AREA)
    printed = capsys.readouterr().out
    assert "7 rows, 3 bad files" in printed
    assert "first is swap_2.pth: not a whole file" in printed


def test_files_listed_twice_are_taken_once(
    arguments: ConvertArguments, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published tokenizer ran the same rows in several processes."""
    publish(out, {"a.pth": saved(record(1))}, path_list=["a.pth", "a.pth", "a.pth"])
    manifest = convert(arguments)
    assert manifest is not None
    assert (manifest["rows"], manifest["data"]["listed_again"]) == (1, 2)
    assert "names 2 files again" in capsys.readouterr().out


def test_nothing_but_bad_files_is_an_error(arguments: ConvertArguments) -> None:
    """The wrong image area makes every file a bad one, and the reason says so."""
    with pytest.raises(UserError, match=r"not one of 10 rows could be used; row swap_0\.pth: .* for 65536 pixels"):
        convert(replace(arguments, image_area=65_536))
    assert not list(Path(arguments.output_path).iterdir())


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_files_and_the_bytes_do_not_tell_how_many(
    arguments: ConvertArguments, tmp_path: Path, workers: int
) -> None:
    convert(arguments)
    parts = [
        convert(replace(arguments, output_path=str(tmp_path / "parts"), rank=rank, world_size=workers))
        for rank in reversed(range(workers))
    ]
    assert [part is None for part in parts] == [True] * (workers - 1) + [False]
    assert contents(tmp_path / "parts") == contents(arguments.output_path)


def test_a_restarted_run_reads_only_what_is_missing(
    arguments: ConvertArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(arguments)
    again = replace(arguments, output_path=str(tmp_path / "again"))
    read: list[str] = []
    plain_read = convert_published.read_edit

    def read_edit(folder: Path, name: str, grids: Any) -> Any:
        read.append(name)
        if len(read) == 6:
            raise KeyboardInterrupt
        return plain_read(folder, name, grids)

    monkeypatch.setattr(convert_published, "read_edit", read_edit)
    with pytest.raises(KeyboardInterrupt):
        convert(again)
    assert list(contents(again.output_path)) == ["shard-00000-of-00003.parquet"]
    convert(again)
    assert len(read) == 6 + 6
    assert contents(again.output_path) == contents(arguments.output_path)


def test_another_list_does_not_continue_the_shards(arguments: ConvertArguments, out: Path) -> None:
    convert(arguments)
    publish(out, {f"swap_{index}.pth": saved(record(index)) for index in range(9)})
    with pytest.raises(UserError, match=r"data\.list_sha256"):
        convert(arguments)


def test_the_tokenizer_is_what_is_known_of_it(
    arguments: ConvertArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown tokenizer taken for the one at hand would train, and reward, noise."""
    save_vision(tmp_path / "vision", codebook_size=32_768)
    known = replace(arguments, output_path=str(tmp_path / "known"), model_path=str(tmp_path / "vision"))
    digest = weights_digest(tmp_path / "vision")
    unknown_manifest, known_manifest = convert(arguments), convert(known)
    assert unknown_manifest is not None and known_manifest is not None
    assert (unknown_manifest["vision_sha256"], known_manifest["vision_sha256"]) == (None, digest)
    assert "vision tokenizer unknown" in capsys.readouterr().out
    unknown_rows, known_rows = read_rows(arguments.output_path), read_rows(known.output_path)
    check_alike([known_rows], {"vision_sha256": digest})
    with pytest.raises(UserError, match="vision_sha256"):
        check_alike([unknown_rows], {"vision_sha256": digest})
    with pytest.raises(UserError, match="vision_sha256"):
        check_alike([known_rows, unknown_rows], {})


def test_codes_that_the_tokenizer_does_not_have_are_bad(arguments: ConvertArguments, tmp_path: Path) -> None:
    save_vision(tmp_path / "vision", codebook_size=64)
    with pytest.raises(UserError, match="not 0 to 63"):
        convert(replace(arguments, model_path=str(tmp_path / "vision")))


def test_an_archive_is_unpacked_once(arguments: ConvertArguments, out: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as tar:
        tar.add(out, arcname="OUT")
    packed = replace(arguments, data=str(tmp_path / "unpacked"), archive=str(tmp_path / "data.tar.gz"))
    with pytest.raises(UserError, match="one worker unpacks"):
        convert(replace(packed, world_size=2))
    manifest = convert(packed)
    assert manifest is not None and manifest["rows"] == 7
    (tmp_path / "data.tar.gz").unlink()
    assert convert(packed) == manifest


def test_the_command(arguments: ConvertArguments, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--data", arguments.data, "--output-path", arguments.output_path, "--image-area", str(AREA)]
    monkeypatch.setattr(sys, "argv", ["convert_published", *flags])
    convert_published.main()
    assert len(read_rows(arguments.output_path)) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"archive": "nowhere.tar", "data": "nowhere"}, r"archive nowhere\.tar does not exist"),
        ({"model_path": "nowhere"}, "nowhere"),
        ({"shard_rows": 0}, "at least 1"),
        ({"rank": 1}, "--world-size"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: ConvertArguments, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(replace(arguments, **change))
    assert not Path(arguments.output_path).exists()


def test_a_pair_takes_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    """On 32x32 pairs as published, of codes drawn evenly from all 32,768, which compress worst."""
    files = {f"{index}.pth": saved(record(index, side=32)) for index in range(512)}
    publish(tmp_path / "OUT", files)
    convert(ConvertArguments(data=str(tmp_path / "OUT"), output_path=str(tmp_path / "shards"), rank=0, world_size=1))
    shards = sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.parquet"))
    assert sum(map(len, files.values())) / shards > 4
