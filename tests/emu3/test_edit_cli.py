"""`python -m emu3.edit` as a person types it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu3.edit import main
from emu3.errors import run_main


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folders(tiny_model_folder: Path, tiny_vision_folder: Path) -> list[str]:
    return ["--model", str(tiny_model_folder), "--vision", str(tiny_vision_folder), "--image-area", "576"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["edit", *map(str, arguments)])
    run_main(main)


def test_one_edit(monkeypatch: pytest.MonkeyPatch, photo: Path, folders: list[str], tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.png"
    run(monkeypatch, *folders, photo, "make the sky purple", "-o", output)
    with Image.open(output) as image:
        assert (image.format, image.size) == ("PNG", (24, 16))
    assert [path.name for path in output.parent.iterdir()] == ["out.png"]


def test_several_edits_are_numbered(
    monkeypatch: pytest.MonkeyPatch, photo: Path, folders: list[str], tmp_path: Path
) -> None:
    """Guards against n edits that overwrite each other, and against a seed that is not passed on."""
    for seed in (0, 1):
        output = tmp_path / f"{seed}.png"
        run(monkeypatch, *folders, photo, "make the sky purple", "-o", output, "--n", 2, "--seed", seed)
    files = [tmp_path / name for name in ("0-1.png", "0-2.png", "1-1.png", "1-2.png")]
    assert len({path.read_bytes() for path in files}) == 4
    assert not (tmp_path / "0.png").exists()


def test_thinking_is_printed(
    monkeypatch: pytest.MonkeyPatch, photo: Path, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, *folders, photo, "a", "-o", tmp_path / "out.png", "--think")
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out.png'}: ")


@pytest.mark.parametrize(
    ("image", "instruction", "output", "message"),
    [
        ("missing.jpg", "a", "out.png", "missing.jpg does not exist"),
        ("text.jpg", "a", "out.png", "cannot be read as an image"),
        ("cut.jpg", "a", "out.png", "cannot be read as an image"),
        ("photo.jpg", "", "out.png", "the instruction is empty"),
        ("photo.jpg", "a", "out.jpg", "the ending .png"),
    ],
)
def test_bad_input_gets_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    photo: Path,
    folders: list[str],
    image: str,
    instruction: str,
    output: str,
    message: str,
) -> None:
    """Guards against a traceback, the libraries' progress bars, and an output file that holds nothing."""
    (photo.parent / "text.jpg").write_text("no picture")
    (photo.parent / "cut.jpg").write_bytes(photo.read_bytes()[:700])
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *folders, photo.parent / image, instruction, "-o", photo.parent / output)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (photo.parent / output).exists()


def test_a_wrong_checkpoint_folder_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--model", tmp_path, "--vision", tmp_path, photo, "a", "-o", tmp_path / "out.png")
    assert end.value.code == 2 and str(tmp_path) in capsys.readouterr().err
