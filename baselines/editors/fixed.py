"""Editors without a model of ours: the source itself, the target, finished images from a folder, any program, and a
class of somebody's own.

A program is one that edits an image from the command line, such as a checkout of EditAR in its own environment:

    --command 'python editar_one.py --image {input} --text={instruction} --save {output} --seed {seed}'

The command is split once, by the shell's rules for quotes, then the placeholders are filled in, each within its own
argument, and it runs without a shell: an instruction cannot become a command. `{input}` is a PNG at the dataset's
size, `{output}` the PNG to write, of the same shape at any size, `{seed}` a number below 2**32; `{input}`, `{output}`
and `{instruction}` have to be there. A program loads its model once per image this way: for a long evaluation write
all images with its own tools and evaluate the folder (`--editor folder`).
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from PIL import Image

from baselines.benchmarks.samples import Sample
from baselines.editors.editing import (
    COMMAND,
    FOLDER,
    GROUND_TRUTH,
    TIME_LIMIT,
    ChosenEditor,
    Edited,
    EditorOptions,
    EditResult,
    ImageEditor,
    Lookup,
    NoImage,
)
from emu3.errors import UserError
from emu3.extensions import load_extension, make_extension
from emu3.tokenizer.images import read_image
from emu3.train_image_editing.image_rows import BadRow, ImageFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_PLACEHOLDER = re.compile(r"\{(input|output|instruction|seed)\}")


def choose_fixed(kind: str, options: EditorOptions) -> ChosenEditor:
    """Raises `UserError` for options that cannot be, and for a folder that is not there."""
    if kind == COMMAND:
        if options.command is None:
            raise UserError(f"editor {COMMAND} needs --command")
        editor = CommandEditor(options.command, options.time_limit or TIME_LIMIT)
        # One image per batch: each is kept as soon as it is there.
        return ChosenEditor(COMMAND, COMMAND, {"command": options.command}, 1, False, lambda: nullcontext(editor))
    if kind == FOLDER:
        if options.images is None:
            raise UserError(f"editor {FOLDER} needs --images")
        return _without_settings(FOLDER, finished_in(options.images), Path(options.images).resolve().name)
    return _without_settings(kind, ground_truth if kind == GROUND_TRUTH else NoEdit(), kind)


def choose_own(text: str, model: str | None) -> ChosenEditor:
    """One's own, a class or function of `model` that makes an `ImageEditor`, as `emu3.extensions` names it. Raises
    `UserError` if it cannot be loaded or is none."""
    load_extension(text, "editor", "(model)")

    def load() -> AbstractContextManager[ImageEditor]:
        return nullcontext(make_extension(text, "editor", "(model)", model, protocol=ImageEditor))

    return ChosenEditor(text, text.rpartition(":")[2], {"model": model}, 1, False, load)


def _without_settings(kind: str, editor: ImageEditor | Lookup, name: str) -> ChosenEditor:
    return ChosenEditor(kind, name, {}, 64, False, lambda: nullcontext(editor))


class NoEdit:
    """Gives the source back: what a judge grants for doing nothing."""

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[EditResult]:
        return [Edited(image) for image in images]


def ground_truth(sample: Sample) -> EditResult:
    """The target: what the judge grants for doing right. A `Lookup`. Raises `UserError` for a sample without one."""
    if sample.target is None:
        raise UserError(f"ground truth: row {sample.id} has no target image")
    return Edited(sample.target)


def finished_in(folder: Path) -> Lookup:
    """Takes ID.png (or .jpg, .jpeg, .webp) from `folder`. An id that leads out of it has none."""
    if not folder.is_dir():
        raise UserError(f"folder {folder} of finished images does not exist")
    root = folder.resolve()

    def find(sample: Sample) -> EditResult:
        for suffix in SUFFIXES:
            try:
                data = ImageFile(root, f"{sample.id}{suffix}").read()
            except BadRow:
                continue
            try:
                return Edited(read_image(io.BytesIO(data), f"{sample.id}{suffix}"))
            except UserError as error:
                return NoImage(str(error))
        return NoImage(f"{root} has no image {sample.id}.png (nor {', '.join(SUFFIXES[1:])})")

    return find


class CommandEditor:
    """Runs `command` once per image and waits at most `time_limit` seconds for it.

    What goes wrong with one image is a `NoImage` of it: another exit code than 0, the time limit, no output, an output
    that is no image. Raises `UserError` for a command without the placeholders and for one that cannot be started.
    """

    def __init__(self, command: str, time_limit: float) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"the command {command!r} cannot be split: {error}") from None
        found = set(_PLACEHOLDER.findall(command))
        if missing := {"input", "output", "instruction"} - found:
            raise UserError(f"the command {command!r} has no place for {{{sorted(missing)[0]}}}")
        self._time_limit = time_limit

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[EditResult]:
        return [
            self._run(image, instruction, (seed + place) % 2**32)
            for place, (image, instruction) in enumerate(zip(images, instructions, strict=True))
        ]

    def _run(self, image: Image.Image, instruction: str, seed: int) -> EditResult:
        with tempfile.TemporaryDirectory(prefix="edit-") as name:
            source, edited = Path(name) / "input.png", Path(name) / "output.png"
            image.save(source)
            values = {"input": str(source), "output": str(edited), "instruction": instruction, "seed": str(seed)}
            # One pass: a placeholder inside an instruction stays what it is.
            words = [_PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in self._words]
            if (trouble := self._finish(words)) is not None:
                return NoImage(trouble)
            try:
                return Edited(read_image(edited, "its output"))
            except UserError as error:
                return NoImage(f"{self._words[0]}: {error}")

    def _finish(self, words: list[str]) -> str | None:
        """Run to the end; what went wrong in one line, None if nothing did."""
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            except (FileNotFoundError, PermissionError) as error:
                raise UserError(f"the command {words[0]} cannot be started: {error.strerror}") from None
            except (OSError, ValueError) as error:  # an instruction that is no argument: too long, or with a NUL
                return f"{words[0]} cannot be given this instruction: {error}"
            try:
                code = process.wait(self._time_limit)
            except subprocess.TimeoutExpired:
                return f"{words[0]} did not end within {self._time_limit:g} s"
            finally:
                _stop(process)
            return None if code == 0 else f"{words[0]} ended with exit code {code}: {_last_line(log)}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the program, if it runs, and its process group, which it leads."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it printed nothing")
