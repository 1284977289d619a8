"""An image folder: lines in any order, bad ones left in their place, nothing held in memory but where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sft_world import image_bytes

from emu3.errors import UserError
from emu3.train_image_editing.image_folder import ImageFolder
from emu3.train_image_editing.image_rows import BadRow, Columns, ImageFile

COLUMNS = Columns(source="before", instruction="text", edited="after")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(image_bytes(index))
    lines = [
        json.dumps({"before": "0.png", "after": "1.png", "text": "Größer", "more": [1]}, ensure_ascii=False),
        "",
        "{broken",
        json.dumps(["before", "after"]),
        json.dumps({"before": "2.png", "text": "no target"}),
        json.dumps({"before": "3.png", "after": None, "text": "last, without a newline"}),
    ]
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_lines_are_rows_wherever_one_starts(table: Path) -> None:
    rows = ImageFolder([table], COLUMNS)
    folder = table.parent
    assert len(rows) == 5
    expected: list[Any] = [
        {"before": ImageFile(folder, "0.png"), "text": "Größer", "after": ImageFile(folder, "1.png")},
        "its line is not JSON",
        "its line is not a JSON object",
        {"before": ImageFile(folder, "2.png"), "text": "no target", "after": None},
        {"before": ImageFile(folder, "3.png"), "text": "last, without a newline", "after": None},
    ]
    for indices in (range(5), [4], [1, 3]):
        for index, row in zip(indices, rows.read(indices), strict=True):
            if isinstance(row, BadRow):
                assert str(row).startswith(expected[index])
            else:
                assert row == expected[index]


def test_changed_lines_and_changed_images_are_other_contents(table: Path) -> None:
    """A run that goes on with other images would mix two datasets."""
    before = ImageFolder([table], COLUMNS).contents
    assert ImageFolder([table], COLUMNS).contents == before
    (table.parent / "3.png").write_bytes(image_bytes(3, width=48))
    replaced = ImageFolder([table], COLUMNS).contents
    (table.parent / "3.png").unlink()
    removed = ImageFolder([table], COLUMNS).contents
    table.write_text(table.read_text(encoding="utf-8").replace("last", "LAST"), encoding="utf-8")
    assert len({before, replaced, removed, ImageFolder([table], COLUMNS).contents}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ('{"before": "0.png", "text": "x"}', "no column 'after'; it has before, text"),
        ("nonsense", "no column 'before'; it has none: its line is not JSON"),
    ],
)
def test_a_table_of_something_else_is_refused(table: Path, text: str, message: str) -> None:
    table.write_text(text)
    with pytest.raises(UserError, match=message):
        ImageFolder([table], COLUMNS)
