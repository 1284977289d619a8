"""`from emu3 import Editor`, and commands that say what is wrong with them before they import a framework."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import emu3
from emu3.checkpoint_facts import CheckpointFacts, vision_origin, write_facts
from emu3.mllm import editor

ROOT = Path(__file__).parents[2]

# Runs a module as `python -m` does, and says which frameworks it has imported and how it ended.
RUN = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
print("ended", code, sorted({"torch", "transformers", "gradio", "deepspeed"} & sys.modules.keys()))
"""


def test_the_editor_is_the_package_s_own() -> None:
    assert (emu3.Editor, emu3.EditedImage) == (editor.Editor, editor.EditedImage)
    with pytest.raises(AttributeError, match="module 'emu3' has no attribute 'Editr'"):
        emu3.Editr  # noqa: B018  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("emu3.edit --help", 0, "--image-area"),
        ("emu3.edit photo.jpg purple --modle M -o out.png", 2, "the following arguments are required: --model"),
        ("emu3.edit photo.jpg purple --model M --dtype int8 -o out.png", 2, "invalid choice: 'int8'"),
        ("emu3.edit none.jpg purple --model M -o out.png", 2, "error: none.jpg does not exist"),
        ("emu3.edit none.jpg purple --model M -o out.bmp", 2, "error: the output is an image file or a folder"),
        ("emu3.edit photo.jpg --model M", 2, "error: no instruction behind photo.jpg, and no terminal to ask at"),
        ("emu3.edit photo.jpg purple --model M", 2, "error: no output: -o out.png"),
        ("emu3.edit --model M -o out", 2, "error: no image: name one, or a folder"),
        ("emu3.edit --model M --instructions none.csv -o out", 2, "error: none.csv cannot be read as CSV"),
        ("emu3.demo --help", 0, "--port"),
        ("emu3.demo --model M --prot 1", 2, "unrecognized arguments: --prot 1"),
        ("emu3.demo --model M --image-area 0", 2, "error: --image-area is 0"),
        ("emu3.export --help", 0, "--scores"),
        ("emu3.export --model M --name org/name", 2, "the following arguments are required: --output"),
    ],
)
def test_help_and_wrong_options_need_no_framework(tmp_path: Path, arguments: str, code: int, message: str) -> None:
    """Guards the seconds that torch and transformers take to import, which every mistyped flag would cost."""
    command = [sys.executable, "-c", RUN, *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"ended {code} []", done.stderr
    assert message in done.stdout + done.stderr


def test_the_readme_s_example_runs(
    tmp_path: Path, tiny_model_folder: Path, tiny_vision_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder where `org/name` is a checkpoint that names its vision tokenizer, as ours do."""
    shutil.copytree(tiny_model_folder, tmp_path / "org/name")
    write_facts(tmp_path / "org/name", CheckpointFacts(image_area=576, vision=vision_origin(tiny_vision_folder)))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    with Image.open("out.png") as edited:
        assert edited.size == (24, 16)


def test_one_image_or_several(tiny_model_folder: Path, tiny_vision_folder: Path) -> None:
    """The sample of an image does not depend on how it was handed over."""
    ours = editor.Editor.from_pretrained(tiny_model_folder, tiny_vision_folder, image_area=576)
    images = [Image.effect_noise((40, 30), 90).convert("RGB") for _ in range(2)]
    one = ours.edit(images[0], "a", n=2)
    several = ours.edit(images, "a", n=2)
    named = ours.edit(images, ["a", "a"], n=2)
    pixels = [[[edit.image.tobytes() for edit in group] for group in groups] for groups in (several, named)]
    assert pixels[0] == pixels[1] and [edit.image.tobytes() for edit in one] == pixels[0][0]
    with pytest.raises(ValueError, match="2 images and 1 instructions"):
        ours.edit(images, ["a"])
