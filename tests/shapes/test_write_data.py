"""The data of the world, as the other stages read it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from emu3.errors import UserError
from shapes.reader import has_flaw, read
from shapes.scene import FLAWS
from shapes.verifier import judge_edit
from shapes.write_data import DataSpec, write

SMALL = DataSpec(simple=12, complex=24, held_out=6, pictures=4)


def rows(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist()


def image(cell: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(SMALL, folder, workers=1)
    return folder


def test_files_rows_and_columns(data: Path) -> None:
    names = ["id", "input", "output", "instruction", "task", "split", "reasoning_verbose"]
    counts = {"simple": 12, "complex": 24, "complex_clean": 24, "held_out": 12}
    for name, count in counts.items():
        table = pq.read_table(data / f"{name}.parquet")
        assert table.column_names == names
        assert table.num_rows == count == len(set(table["id"].to_pylist()))
    assert pq.read_table(data / "pictures.parquet").column_names == ["input"]
    assert {path.stem for path in data.iterdir()} == {*counts, "pictures"}


def test_the_rows_are_those_of_earlier_runs(data: Path) -> None:
    """A draw more or less changes all data, and with them every number that was measured on them."""
    digests = {
        "simple": "08f4ec8ca1ca61a2",
        "complex": "c9aa3c5fbccabd79",
        "complex_clean": "ec9226d595e16616",
        "held_out": "331c34d1fc6524d6",
        "pictures": "9b1d0e69e59f73e3",
    }
    for name, expected in digests.items():
        digest = hashlib.sha256()
        for row in rows(data / f"{name}.parquet"):
            for _, value in sorted(row.items()):
                digest.update(value.encode() if isinstance(value, str) else image(value).tobytes())
        assert digest.hexdigest()[:16] == expected, name


def test_restorations_are_a_share_of_the_simple_edits_and_images(tmp_path: Path) -> None:
    """And of nothing else: the held-out rows of two runs with different shares are the same rows."""
    spec = DataSpec(simple=60, complex=2, held_out=3, pictures=20, restoration=0.4)
    write(spec, tmp_path, workers=1)
    write(replace(spec, restoration=0.0), tmp_path / "plain", workers=1)
    found = rows(tmp_path / "simple.parquet")
    restored = [row for row in found if row["task"] == "restoration"]
    assert 12 <= len(restored) <= 36 and {row["split"] for row in found} == {"simple"}
    for row in found:
        source, target = image(row["input"]), image(row["output"])
        assert judge_edit(row["instruction"], source, target).scores == (10, 10)
        assert judge_edit(row["instruction"], source, source).scores[0] == 0
    for name in ("held_out", "complex"):
        assert rows(tmp_path / f"{name}.parquet") == rows(tmp_path / "plain" / f"{name}.parquet")
    images = [image(row["input"]) for row in rows(tmp_path / "pictures.parquet")]
    assert any(has_flaw(one, flaw) for one in images for flaw in FLAWS)


def test_each_split_holds_its_own_kinds(data: Path) -> None:
    """The table's columns are these splits: a simple edit among the complex ones would flatter them."""
    simple = {"colour", "shape", "add", "remove", "background"}
    for row in rows(data / "held_out.parquet"):
        assert (row["split"] == "simple") == (row["task"] in simple)
    assert {row["split"] for row in rows(data / "simple.parquet")} == {"simple"}
    assert {row["split"] for row in rows(data / "complex.parquet")} == {"complex"}


def test_clean_targets_score_full_and_noisy_ones_less(data: Path) -> None:
    noisy = 0
    for clean, row in zip(rows(data / "complex_clean.parquet"), rows(data / "complex.parquet"), strict=True):
        assert {**clean, "output": None} == {**row, "output": None}, "only the target may differ"
        source = image(row["input"])
        verdicts = [judge_edit(row["instruction"], source, image(r["output"])) for r in (clean, row)]
        assert verdicts[0].scores == (10, 10)
        assert (clean["output"] != row["output"]) == (verdicts[1].scores[1] < 10)
        noisy += clean["output"] != row["output"]
    assert 8 <= noisy < 24


def test_without_nuisance_the_complex_set_equals_its_clean_twin(tmp_path: Path) -> None:
    write(DataSpec(simple=1, complex=8, held_out=1, pictures=1, nuisance_share=0.0), tmp_path, workers=1)
    assert rows(tmp_path / "complex.parquet") == rows(tmp_path / "complex_clean.parquet")


def test_a_row_does_not_depend_on_the_size_of_its_set(data: Path, tmp_path: Path) -> None:
    """A preset with more rows has to extend a smaller one, or runs of two sizes could not be compared."""
    write(DataSpec(simple=3, complex=5, held_out=2, pictures=1), tmp_path, workers=1)
    for name, count in {"simple": 3, "complex": 5, "complex_clean": 5, "pictures": 1}.items():
        assert rows(tmp_path / f"{name}.parquet") == rows(data / f"{name}.parquet")[:count]
    assert rows(tmp_path / "held_out.parquet")[:2] == rows(data / "held_out.parquet")[:2]


def test_held_out_rows_are_not_in_the_training_sets(data: Path) -> None:
    seen = {row["input"]["bytes"] for name in ("simple", "complex") for row in rows(data / f"{name}.parquet")}
    assert not seen & {row["input"]["bytes"] for row in rows(data / "held_out.parquet")}


def test_another_seed_gives_other_rows(data: Path, tmp_path: Path) -> None:
    write(DataSpec(simple=4, complex=1, held_out=1, pictures=1, seed=1), tmp_path, workers=1)
    mine, theirs = (rows(folder / "simple.parquet")[:4] for folder in (tmp_path, data))
    assert all(a["input"] != b["input"] for a, b in zip(mine, theirs, strict=True))


def test_the_chain_of_thought_names_what_is_there(data: Path) -> None:
    """Its five steps begin with the source's things and end with the edited scene."""
    for row in rows(data / "held_out.parquet"):
        text = row["reasoning_verbose"]
        assert all(f"{step}. " in text for step in range(1, 6))
        assert row["instruction"] in text.lower()
        first, last = text.split(" 2. ")[0], text.split(" 5. ")[1]
        for part, cell in ((first, row["input"]), (last, row["output"])):
            scene = read(image(cell)).scene
            assert f"on {scene.background}" in part
            assert all(f"{s.size} {s.colour} {s.form}" in part for s in scene.slots if s)


@pytest.mark.parametrize(
    "wrong", [{"nuisance_share": 1.5}, {"simple": 0}, {"nuisance_strength": -1}, {"restoration": 2.0}]
)
def test_impossible_sizes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"nuisance-share|at least|restoration"):
        DataSpec(**wrong)
