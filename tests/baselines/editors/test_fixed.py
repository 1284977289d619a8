"""Editors without a model: programs, and finished images from a folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from noise_images import noise
from PIL import ImageChops

from baselines.benchmarks.samples import Sample
from baselines.editors.editing import Edited, EditorOptions, EditResult, NoImage
from baselines.editors.fixed import CommandEditor, finished_in
from baselines.evaluate import choose_editor
from emu3.errors import UserError


def sample(id: str) -> Sample:
    return Sample(id, "task", "all", "", "invert it", noise(0), None)


def reason(result: EditResult) -> str:
    assert isinstance(result, NoImage)
    return result.reason


INVERT = """
import sys
from PIL import Image, ImageChops
source, text, target, seed = sys.argv[1:]
open("{log}", "a").write(text + " " + seed + "\\n")
ImageChops.invert(Image.open(source)).save(target)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """The command that runs a Python program on source, instruction, target and seed."""

    def make(text: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(text)
        return f"{sys.executable} {file} {{input}} '{{instruction}}' {{output}} {{seed}}"

    return make


def test_a_command_edits(program: Callable[[str], str], tmp_path: Path) -> None:
    """Guards the argument against the shell and against marks inside an instruction."""
    log = tmp_path / "log"
    editor = CommandEditor(program(INVERT.replace("{log}", str(log))), 60)
    hostile = f"'; touch {tmp_path}/owned; {{output}} $HOME"
    results = editor.edit([noise(1), noise(2)], [hostile, "b"], seed=5)
    for seed, result in zip((1, 2), results, strict=True):
        assert isinstance(result, Edited) and result.image.tobytes() == ImageChops.invert(noise(seed)).tobytes()
    assert log.read_text() == f"{hostile} 5\nb 6\n"
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; print('so be it'); sys.exit('no such layer')", "ended with exit code 1: no such layer"),
        ("", "its output does not exist"),
        ("import sys; open(sys.argv[3], 'w').write('x')", "its output cannot be read as an image"),
    ],
)
def test_a_command_that_fails_is_a_failure_of_its_sample(
    program: Callable[[str], str], text: str, message: str
) -> None:
    [result] = CommandEditor(program(text), 60).edit([noise(0)], ["a"], 0)
    assert message in reason(result) and "\n" not in reason(result)


def test_a_command_that_hangs_is_ended_with_its_children(program: Callable[[str], str], tmp_path: Path) -> None:
    """Guards a GPU that an abandoned child would keep."""
    beat = tmp_path / "beat"
    child = f"import time\nwhile True: open({str(beat)!r}, 'a').write('.'); time.sleep(0.01)"
    text = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    text += f"while not __import__('os').path.exists({str(beat)!r}): time.sleep(0.01)\ntime.sleep(600)"
    [result] = CommandEditor(program(text), 2).edit([noise(0)], ["a"], 0)
    assert "did not end within 2 s" in reason(result)
    size = beat.stat().st_size if beat.exists() else 0
    time.sleep(0.2)
    assert (beat.stat().st_size if beat.exists() else 0) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edit {input} {output}", "has no place for {instruction}"),
        ("edit '{input} {output} {instruction}", "cannot be split"),
    ],
)
def test_a_command_without_its_marks(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CommandEditor(text, 1)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(UserError, match="the command /no/such cannot be started"):
        CommandEditor("/no/such {input} {output} {instruction}", 1).edit([noise(0)], ["a"], 0)


def test_a_command_is_run_once_per_batch() -> None:
    """Guards what a long program has finished: it is kept image by image."""
    options = EditorOptions(command="edit {input} {output} {instruction}")
    assert choose_editor("command", options, image_area=256).batch_size == 1


def test_finished_images_by_id(tmp_path: Path) -> None:
    """Guards the pairing, and files outside of the folder: ids are what a dataset says they are."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    noise(1).save(folder / "a.png")
    noise(2).save(folder / "sub" / "b.png")
    noise(3).save(tmp_path / "secret.png")
    (folder / "broken.png").write_bytes(b"x")
    results = list(map(finished_in(folder), map(sample, ("sub/b", "a", "../secret", "none", "broken"))))
    assert [result.image.tobytes() for result in results[:2] if isinstance(result, Edited)] == [
        noise(2).tobytes(),
        noise(1).tobytes(),
    ]
    assert all("has no image" in reason(result) for result in results[2:4])
    assert "broken.png cannot be read as an image" in reason(results[4])
    with pytest.raises(UserError, match="does not exist"):
        finished_in(tmp_path / "nowhere")
