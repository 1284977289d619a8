"""Editing by hand: folders, tables, formats, grids, and turns at a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_edit_cli import folders, run  # noqa: F401  # the tiny model's flags

from emu3 import edit_turns
from emu3.edit_turns import take_turns
from emu3.errors import UserError
from emu3.mllm.editor import EditedImage
from emu3.tokenizer.images import fit_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with an upright and a wide photo, a text, and a file that only is called an image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.jpg", (30, 40)), ("b.webp", (40, 30)), ("c.png", (32, 32))):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_folder_in_and_a_folder_out(
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    folders: list[str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Guards a call that goes on after an interruption: it makes what is missing, and that with the same samples."""
    output = tmp_path / "edited"
    run(monkeypatch, *folders, photos, "make the sky purple", "-o", output)
    whole = contents(output)
    assert list(whole) == ["a.png", "b.png", "c.png"]
    (output / "b.png").unlink()
    capsys.readouterr()
    run(monkeypatch, *folders, photos, "make the sky purple", "-o", output)
    assert contents(output) == whole
    told = f"skipped 2 of 3 images: {output} has their edits; remove one to make it anew\n{output / 'b.png'}\n"
    assert capsys.readouterr().out == told
    monkeypatch.setattr("emu3.edit.load_editor", lambda _: pytest.fail("a model is loaded for nothing"))
    run(monkeypatch, *folders, photos, "a", "-o", output)


def test_images_that_cannot_be_read_keep_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    folders: list[str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "b.webp").write_bytes(b"no image")
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *folders, photos, "a", "-o", tmp_path / "edited")
    assert list(contents(tmp_path / "edited")) == ["a.png", "c.png"]
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"left out: {photos / 'b.webp'} cannot be read as an image")
    assert (end.value.code, last) == (2, "error: 1 images could not be read and were left out, see above")


def test_a_folder_without_images(
    monkeypatch: pytest.MonkeyPatch,
    folders: list[str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *folders, tmp_path, "a", "-o", tmp_path / "edited")
    assert f"error: {tmp_path} holds no image" in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP"), (".png", "PNG")])
def test_the_ending_says_the_format(
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    folders: list[str],  # noqa: F811
    tmp_path: Path,
    suffix: str,
    kind: str,
) -> None:
    run(monkeypatch, *folders, photos / "a.jpg", "a", "-o", tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert (image.format, image.size) == (kind, (16, 24))


def test_a_grid_beside_the_single_ones(
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    folders: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    """The source, then the edits in their order, 8 pixels between them."""
    output = tmp_path / "edited"
    run(monkeypatch, *folders, photos, "a", "-o", output, "--n", 2, "--grid", "--format", "webp")
    assert list(contents(output)) == [f"{name}-{part}.webp" for name in "abc" for part in ("1", "2", "grid")]
    run(monkeypatch, *folders, photos / "c.png", "a", "-o", tmp_path / "c.png", "--n", 2, "--grid")
    grid = np.asarray(Image.open(tmp_path / "c-grid.png"))
    assert grid.shape == (24, 3 * 24 + 2 * 8, 3)
    for place in (1, 2):
        edit = np.asarray(Image.open(tmp_path / f"c-{place}.png"))
        assert np.array_equal(grid[:, 32 * place : 32 * place + 24], edit)


def test_instructions_from_files(
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    folders: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Guards the pairing: a table's edits are those that each line gives by itself, whose number is the line's."""
    (photos / "edits.csv").write_text('image,instruction,output\na.jpg,"remove it, all",\nc.png,a,other.png\n')
    (photos / "edits.jsonl").write_text(
        '{"image": "a.jpg", "instruction": "remove it, all"}\n'
        '{"image": "c.png", "instruction": "a", "output": "other"}\n'
    )
    (tmp_path / "one.txt").write_text("remove it, all\n")
    for table in ("csv", "jsonl"):
        run(monkeypatch, *folders, "--instructions", photos / f"edits.{table}", "-o", tmp_path / table)
    assert list(contents(tmp_path / "csv")) == ["a.png", "other.png"]
    assert contents(tmp_path / "csv") == contents(tmp_path / "jsonl")
    run(monkeypatch, *folders, "--instructions", tmp_path / "one.txt", photos / "a.jpg", "-o", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "csv" / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("image,text\na.jpg,x\n", "edits.csv has no column 'instruction'; it has image, text"),
        ("image,instruction\na.jpg,\n", "edits.csv, row 0: "),
        ("image,instruction\n,a\n", "edits.csv, row 0: it names no image"),
        ("image,instruction\na.jpg,a\na.jpg,b\n", "a.png would be written twice"),
        ("image,instruction\nnone.jpg,a\n", "none.jpg does not exist"),
    ],
)
def test_a_table_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    folders: list[str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    table: str,
    told: str,
) -> None:
    (photos / "edits.csv").write_text(table)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *folders, "--instructions", photos / "edits.csv", "-o", tmp_path / "edited")
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each edit is of the last result, with a seed of its own; what is wrong with a line costs nothing but the line."""
    source, made = Image.new("RGB", (8, 8)), []
    output = tmp_path / "out.png"

    def edit(image: Image.Image, instruction: str, seed: int) -> EditedImage:
        if instruction == "too long":
            raise UserError("a prompt of 9 tokens does not fit")
        made.append((image.getpixel((0, 0)), instruction, seed))
        return EditedImage(Image.new("RGB", (8, 8), (len(made), 0, 0)), None)

    lines = iter(
        ["undo", "first", "second", "", "too long", "undo", "save the dog", f"save {tmp_path / 'copy.jpg'}", "save x"]
    )
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or _end(lines))
    take_turns(edit, source, output, 7)
    assert made == [((0, 0, 0), "first", 7), ((1, 0, 0), "second", 8), ((1, 0, 0), "save the dog", 9)]
    assert Image.open(output).getpixel((0, 0)) == (3, 0, 0) and Image.open(tmp_path / "copy.jpg").format == "JPEG"
    assert capsys.readouterr().out.splitlines()[1:] == [
        "this is the source",
        f"{output}: edit 1, seed 7",
        f"{output}: edit 2, seed 8",
        "a prompt of 9 tokens does not fit",
        f"{output}: edit 1",
        f"{output}: edit 2, seed 9",
        str(tmp_path / "copy.jpg"),
        "save FILE, with one of the endings .png, .jpg, .jpeg, .webp",
        "",
    ]


def _end(lines: object) -> str:
    """An empty line while there are lines, then the end of the input."""
    if getattr(lines, "__length_hint__")() == 0:  # noqa: B009
        raise EOFError
    return ""


def test_a_turn_edits_the_image_as_it_is(monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path) -> None:
    """Guards many turns: each scaled the last result to the area again, and cropped what no longer was whole cells."""
    fitted = []

    class Looking:
        image_area, codec = 576, SimpleNamespace(factor=8)

        def edit(self, image: Image.Image, instruction: str, *, image_area: int, **_: object) -> list[EditedImage]:
            fitted.append(fit_image(image, image_area, 8).tobytes() == image.tobytes())
            return [EditedImage(image, None)]

    monkeypatch.setattr(edit_turns, "load_editor", lambda _: Looking())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    lines = iter(["once", "twice"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or _end(lines))
    run(monkeypatch, "--model", "m", photos / "b.webp", "-o", tmp_path / "out.png")
    assert fitted == [True, True]


def test_turns_at_a_terminal(photos: Path, folders: list[str], tmp_path: Path) -> None:  # noqa: F811
    """As typed, with the tiny model: `photo-edited.png` lies where the command was called."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "emu3.edit", *folders, str(photos / "a.jpg")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "dumb"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(ours, b"make the sky purple\nundo\n\x04")
        out, error = process.communicate(timeout=300)
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, error) == (0, "")
    assert "a-edited.png: edit 1, seed 0" in out and "a-edited.png: the source" in out
    with Image.open(tmp_path / "a-edited.png") as image:
        assert image.size == (16, 24)
