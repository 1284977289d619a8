"""What a cell may hold, and that a row's own words cannot reach files they should not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sft_world import image_bytes

from emu3.train_image_editing.image_rows import BadRow, Columns, ImageFile, read_row, row_id

COLUMNS = Columns(source="a", instruction="text", edited="b", cot=("why",), id="key")


def values(**cells: Any) -> dict[str, Any]:
    return {"a": image_bytes(0), "b": None, "text": "more", "why": None, "key": "k"} | cells


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    (inside / "images").mkdir(parents=True)
    (inside / "images" / "1.png").write_bytes(image_bytes(1))
    (tmp_path / "secret.png").write_bytes(image_bytes(2))
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "circle.png").symlink_to("circle.png")
    return inside


def test_a_file_of_the_folder_is_read(folder: Path) -> None:
    for name in ("images/1.png", "./images/../images/1.png", str(folder / "images/1.png")):
        row = read_row(values(a=ImageFile(folder, name)), COLUMNS, 0)
        assert row.source_digest == read_row(values(a=image_bytes(1)), COLUMNS, 0).source_digest
    assert ImageFile(folder, "images/1.png").size() == len(image_bytes(1))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../secret.png", "leads out of the folder"),
        ("images/../../secret.png", "leads out of the folder"),
        ("/etc/hostname", "leads out of the folder"),
        ("link.png", "leads out of the folder"),
        ("circle.png", "is no file name|does not exist"),
        ("images", "does not exist"),
        ("2.png", "does not exist"),
        ("", "is no file name"),
        ("1.png\0", "is no file name"),
        ("x" * 5000, "not the name of a file"),
    ],
)
def test_any_other_name_is_a_bad_row(folder: Path, name: str, why: str) -> None:
    """The JSONL of a downloaded dataset must not choose which files of this machine are tokenized."""
    with pytest.raises(BadRow, match=f"^a: .*({why})"):
        read_row(values(a=ImageFile(folder, name)), COLUMNS, 0)
    assert ImageFile(folder, name).size() == -1


def test_a_file_that_is_too_large_is_not_read(folder: Path) -> None:
    """Guards the memory: a sparse file has any size."""
    with (folder / "large.png").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(BadRow, match=r"^a: 'large\.png' has more than 100000000 bytes"):
        read_row(values(a=ImageFile(folder, "large.png")), COLUMNS, 0)


def test_a_path_in_a_cell_is_not_followed(folder: Path) -> None:
    for cell in (str(folder / "images/1.png"), {"bytes": None, "path": str(folder / "images/1.png")}, 7):
        with pytest.raises(BadRow, match=r"a holds .*, not an image"):
            read_row(values(a=cell), COLUMNS, 0)


@pytest.mark.parametrize(
    ("cell", "cot"),
    [
        (None, {}),
        ("", {}),
        (" \n", {}),
        ("because", {"why": "because"}),
        ([[1.5, 2, 3, 4]], {"why": "[[1.5, 2, 3, 4]]"}),
        ({"größe": [1, 2, 3, 4]}, {"why": '{"größe": [1, 2, 3, 4]}'}),
    ],
)
def test_reasoning_that_is_no_text_is_json(cell: Any, cot: dict[str, str]) -> None:
    """Python's own form of a dict is no form that anything else can read."""
    assert read_row(values(why=cell), COLUMNS, 0).cot == cot


def test_a_row_without_an_id_is_called_by_its_number() -> None:
    """Rows of the name 'None' could not be told apart."""
    assert row_id(values(key=None), COLUMNS, 7) == "7"
    assert row_id(values(key=0), COLUMNS, 7) == "0"
    assert row_id(values(), Columns(source="a", instruction="text"), 7) == "7"
