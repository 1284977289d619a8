"""`python -m emu3.edit` as a person types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_cache import cached
from huggingface_hub import constants
from PIL import Image

from emu3.edit import main, output_paths
from emu3.errors import UserError, run_main


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


def test_several_images_go_into_a_folder(
    monkeypatch: pytest.MonkeyPatch, photo: Path, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards names, and the pairing of names with images: the second is upright, the first is not."""
    upright = tmp_path / "upright.png"
    Image.new("RGB", (30, 40)).save(upright)
    output = tmp_path / "edited"
    run(monkeypatch, *folders, photo, upright, "-o", output, "make the sky purple")
    assert {path.name: Image.open(path).size for path in output.iterdir()} == {
        "photo.png": (24, 16),
        "upright.png": (16, 24),
    }
    run(monkeypatch, *folders, photo, upright, "make the sky purple", "--n", 2, "-o", output)
    numbered = ["photo-1.png", "photo-2.png", "upright-1.png", "upright-2.png"]
    assert sorted(path.name for path in output.iterdir()) == sorted(["photo.png", "upright.png", *numbered])
    assert capsys.readouterr().out.split()[2:] == [str(output / name) for name in numbered]


def test_one_image_into_a_folder_that_is_there(
    monkeypatch: pytest.MonkeyPatch, photo: Path, folders: list[str], tmp_path: Path
) -> None:
    run(monkeypatch, *folders, photo, "make the sky purple", "-o", tmp_path)
    assert (tmp_path / "photo.png").is_file()


def test_names_that_would_collide(tmp_path: Path) -> None:
    """Guards sources from their edits, and edits from each other."""
    (tmp_path / "a").mkdir()
    for images, output, n, message in (
        ([tmp_path / "a" / "x.png"], tmp_path / "a", 1, "a/x.png is an image to edit"),
        ([tmp_path / "a" / "x.png"], tmp_path / "a" / ".." / "a" / "x.png", 1, "x.png is an image to edit"),
        ([tmp_path / "x-1.png"], tmp_path / "x.png", 2, "x-1.png is an image to edit"),
        ([tmp_path / "x.jpg", tmp_path / "a" / "x.png"], tmp_path / "out", 1, "out/x.png would be written twice"),
        ([tmp_path / "x.jpg", tmp_path / "y.jpg"], tmp_path / "out.png", 1, "2 images go into a folder"),
    ):
        with pytest.raises(UserError, match=message):
            output_paths(images, output, n)


def test_models_from_the_hub_in_a_process_of_its_own(
    photo: Path, tiny_model_folder: Path, tiny_vision_folder: Path, tmp_path: Path
) -> None:
    """As typed, offline, from a cache: guards the environment variables, which are read when the library loads."""
    cache = tmp_path / "hf" / "hub"
    cached(tiny_model_folder, cache, "lab/earl", "v1")
    cached(tiny_vision_folder, cache, "lab/vision")
    command = [sys.executable, "-m", "emu3.edit", str(photo), "make the sky purple", "--image-area", "576"]
    command += ["--device", "cpu", "--dtype", "bfloat16", "--tokenizer", "lab/earl@v1", "--vision", "lab/vision"]
    command += ["-o", str(tmp_path / "out.png"), "--model", "lab/earl@v1"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("HF_HUB_CACHE", "HF_ENDPOINT")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{tmp_path / 'out.png'}\n", "")


def test_a_model_that_is_neither_here_nor_cached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--model", "lab/earl", "--vision", "lab/vision", photo, "a", "-o", tmp_path / "out.png")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: folder lab/earl does not exist, and as a Hub id: offline")


@pytest.mark.parametrize(
    ("image", "instruction", "output", "message"),
    [
        ("missing.jpg", "a", "out.png", "missing.jpg does not exist"),
        ("text.jpg", "a", "out.png", "cannot be read as an image"),
        ("cut.jpg", "a", "out.png", "cannot be read as an image"),
        ("photo.jpg", "", "out.png", "the instruction is empty"),
        ("photo.jpg", "a", "out.bmp", "the ending .png, .jpg or .webp"),
        ("photo.jpg", "a", "photo.jpg/out.png", "photo.jpg is a file"),
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
    (photo.parent / "text.jpg").write_text("no image")
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
