"""Published files come from strangers' disks: found in either layout, read as they are, refused with a reason."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import AREA, SIDE, around, publish, record, saved

from emu3.errors import UserError
from emu3.train_image_editing.convert_published import FILE_LIMIT, Grids, open_published, read_edit
from emu3.train_image_editing.published_pickle import BadFile

GRIDS = Grids(codebook_size=32_768, factor=8, image_area=AREA)


def read(folder: Path, value: Any) -> Any:
    """Read one file of the dataset in `folder`: `value` as bytes, or saved by torch."""
    publish(folder, {"a.pth": value if isinstance(value, bytes) else saved(value)})
    return read_edit(folder, "a.pth", GRIDS)


@pytest.mark.parametrize("subfolder", ["feature", "."])
@pytest.mark.parametrize("inside", ["", "OUT"])
@pytest.mark.parametrize("given", ["folder", "list"])
def test_every_layout_is_found(tmp_path: Path, subfolder: str, inside: str, given: str) -> None:
    """The prefix in the list is a path on the makers' disk; archives may hold OUT or what is in it."""
    files = {f"swap_{index}.pth": saved(record(index)) for index in range(3)}
    out = publish(tmp_path / inside, files, subfolder)
    edits = open_published(tmp_path if given == "folder" else out / "list" / "tokenized_datalist.json")
    assert (edits.folder, edits.names, edits.repeats) == (out, tuple(files), 0)
    for index, name in enumerate(edits.names):
        row, expected = read_edit(edits.folder, name, GRIDS), record(index)
        assert (row.id, row.instruction, row.cot) == (f"swap_{index}", expected["instruction"], expected["CoT"])
        assert row.edited is not None
        for codes, key in ((row.source, "original_image"), (row.edited, "edited_image")):
            assert codes.dtype == np.uint16
            np.testing.assert_array_equal(codes, expected[key])


def test_a_prefix_that_exists_here_is_not_followed(tmp_path: Path) -> None:
    """A list may name any folder of this machine."""
    other = publish(tmp_path / "other", {"a.pth": saved(record(7))})
    publish(tmp_path / "out", {"a.pth": saved(record(1))}, prefix=str(other / "feature"))
    assert read_edit(open_published(tmp_path / "out").folder, "a.pth", GRIDS).id == "swap_1"


def test_a_list_of_another_name(tmp_path: Path) -> None:
    """Training and validation lists of one folder."""
    out = publish(tmp_path, {"a.pth": saved(record(1))})
    (out / "list" / "val.json").write_text(json.dumps({"prefix": "x", "path_list": ["b.pth", "b.pth"]}))
    edits = open_published(out / "list" / "val.json")
    assert (edits.names, edits.repeats) == (("b.pth",), 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'no "path_list"'),
        ('{"path_list": ["a", 1]}', 'no "path_list"'),
        ('{"path_list": []}', "lists no files"),
    ],
)
def test_a_list_of_something_else(tmp_path: Path, content: str, message: str) -> None:
    publish(tmp_path, {})
    (tmp_path / "list" / "tokenized_datalist.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_published(tmp_path)


def test_no_list_and_two_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_published(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no list/tokenized_datalist\.json"):
        open_published(tmp_path)
    for name in ("a", "b"):
        publish(tmp_path / name, {"x.pth": b""})
    with pytest.raises(UserError, match="several datasets"):
        open_published(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../outside.pth", "its name leads out"),
        ("feature/../../outside.pth", "its name leads out"),
        ("{outside}", "its name leads out"),
        ("link.pth", "link that leads out"),
        ("linked/outside.pth", "link that leads out"),
        ("a\x00.pth", "its name leads out"),
        ("\ud800.pth", "its name leads out"),
        ("x" * 300, "not there"),
        ("missing.pth", "not there"),
        ("", "not there"),
    ],
)
def test_names_that_lead_out_of_the_dataset(tmp_path: Path, name: str, message: str) -> None:
    out = publish(tmp_path / "out", {"a.pth": saved(record(1))})
    outside = tmp_path / "outside.pth"
    outside.write_bytes(saved(record(2)))
    (out / "feature" / "link.pth").symlink_to(outside)
    (out / "feature" / "linked").symlink_to(tmp_path)
    with pytest.raises(BadFile, match=message):
        read_edit(out, name.format(outside=outside), GRIDS)


def test_a_link_inside_of_the_dataset_is_read(tmp_path: Path) -> None:
    out = publish(tmp_path, {"a.pth": saved(record(1))})
    (out / "feature" / "b.pth").symlink_to("a.pth")
    assert read_edit(out, "b.pth", GRIDS).id == "swap_1"


def codes(*shape: int, dtype: Any = np.int64) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"original_image": codes(SIDE * SIDE)}, r"original_image is a ndarray of shape \(16,\) and int64, not a grid"),
        ({"edited_image": codes(1, SIDE, SIDE)}, "edited_image is a ndarray"),
        ({"edited_image": codes(SIDE, SIDE, dtype=np.float32)}, "float32, not a grid of integers"),
        ({"edited_image": codes(SIDE, SIDE, dtype=bool)}, "bool, not a grid of integers"),
        ({"edited_image": codes(0, SIDE)}, "damaged pickle: the shape"),
        ({"edited_image": [[1] * SIDE] * SIDE}, "edited_image is a list, not a grid"),
        ({"edited_image": None}, "edited_image is a NoneType"),
        ({"edited_image": codes(SIDE, SIDE) - 1}, "codes from -1 to -1, not 0 to 32767"),
        ({"edited_image": codes(SIDE, SIDE) + 32_768}, "codes from 32768"),
        ({"original_image": codes(SIDE * 2, SIDE * 2)}, "8x8 codes, too many or too few for 1024 pixels"),
        ({"original_image": codes(1, 1)}, "1x1 codes, too many or too few"),
        ({"original_image": codes(1, 70_000)}, "1x70000 codes, too many"),
        ({"instruction": ""}, "instruction is empty"),
        ({"instruction": " \n"}, "instruction is empty"),
        ({"instruction": ["a"]}, "instruction is empty or not a text"),
        ({"instruction": "\ud83d"}, "instruction is not text that UTF-8 can hold"),
        ({"edit_id": 3}, "edit_id is empty or not a text"),
        ({"CoT": "because"}, "CoT is a str, not a dict"),
        ({"CoT": {"why": 3}}, "a text of CoT is empty or not a text"),
        ({"CoT": {"why": {"deeper": "x"}}}, "a text of CoT"),
        ({"extra": torch.zeros(1)}, r"refused torch\._utils\._rebuild_tensor_v2"),
    ],
)
def test_records_that_are_no_edits(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadFile, match=message):
        read(tmp_path, record(1, **changes))


@pytest.mark.parametrize("key", ["edit_id", "original_image", "edited_image", "CoT", "instruction"])
def test_a_missing_field_is_named(tmp_path: Path, key: str) -> None:
    value = record(1)
    del value[key]
    with pytest.raises(BadFile, match=f"has no {key}"):
        read(tmp_path, value)


def test_fields_that_nobody_needs_and_empty_thoughts_are_left_out(tmp_path: Path) -> None:
    row = read(tmp_path, record(1, score=np.float32(0.5), tags=["a"], CoT={"a": "x", "b": "", "c": None}))
    assert (row.id, row.cot, row.task) == ("swap_1", {"a": "x"}, None)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint16, ">i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_codes_of_every_integer_type(tmp_path: Path, dtype: Any, order: Any) -> None:
    """A transposed array is saved column by column."""
    grid = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    np.testing.assert_array_equal(
        read(tmp_path, record(1, original_image=grid.astype(dtype, order=order))).source, grid
    )


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 36), (24, 42), (39, 26), (8, 128), (2, 480)])
def test_sides_that_rounding_makes_of_one_area(height: int, width: int) -> None:
    """65,536 pixels of any shape, rounded to pixels and cropped to cells."""
    grid = codes(height, width)
    assert Grids(32_768, 8, 65_536).check(grid, "x").shape == (height, width)
    with pytest.raises(BadFile, match="too many or too few"):
        Grids(32_768, 8, 4 * 65_536).check(grid, "x")


def test_a_truncated_file(tmp_path: Path) -> None:
    data = saved(record(1))
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(BadFile, match=r"not a whole file of torch\.save"):
            read(tmp_path, data[:length])


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    """A code that a disk has changed is a code like any other; only the check sum tells."""
    data = bytearray(saved(record(1)))
    position = data.index(record(1)["instruction"].encode())
    data[position] ^= 1
    with pytest.raises(BadFile, match="CRC"):
        read(tmp_path, bytes(data))


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="not a whole file of torch"):
        read(tmp_path, pickle.dumps(record(1)))
    with pytest.raises(BadFile, match="holds a list, not a dict"):
        read(tmp_path, [1])
    with pytest.raises(BadFile, match=r"not one data\.pkl"):
        read(tmp_path, around(b"").replace(b"data.pkl", b"code.pkl"))


def test_a_compressed_pickle_is_not_unpacked(tmp_path: Path) -> None:
    """torch.save never compresses; a megabyte of zeros in a kilobyte would be."""
    with pytest.raises(BadFile, match=r"not one data\.pkl, stored"):
        read(tmp_path, around(b"\x00" * FILE_LIMIT, zipfile.ZIP_DEFLATED))
    with pytest.raises(BadFile, match="larger than"):
        read(tmp_path, bytes(FILE_LIMIT + 1))
