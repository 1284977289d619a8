"""Several edits of one image in turn, at a terminal: `earl edit --model M photo.jpg`.

Each instruction edits the last result. The result lies in one file (`-o`, `photo-edited.png` without it), which an
image viewer may keep open; `undo` goes back to the image before, also there, and `save` writes a copy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from emu3.edit import FORMATS, load_editor, output_paths, save_image
from emu3.errors import UserError
from emu3.tokenizer.images import fit_image, read_image

if TYPE_CHECKING:
    from PIL import Image

    from emu3.mllm.editor import EditedImage

HELP = "what to change; undo; save FILE; Ctrl-D ends it"

Edit = Callable[["Image.Image", str, int], "EditedImage"]
"""An edit of an image by an instruction, with a seed."""


def main(arguments: argparse.Namespace) -> None:
    """Load the model of these options of `emu3.edit` and take turns until the input ends.

    Raises UserError where nobody can be asked, and for what is wrong with image and output.
    """
    [name] = arguments.images
    if Path(name).is_dir() or not sys.stdin.isatty():
        raise UserError(f"no instruction behind {name}, and no terminal to ask at: name one, or --instructions FILE")
    source = read_image(Path(name), name)
    output = arguments.output or Path(f"{Path(name).stem}-edited.png")
    [[output]] = output_paths([Path(name)], output / f"{Path(name).stem}.png" if output.is_dir() else output, 1)
    with suppress(ImportError):  # lines that are typed can be edited and called back
        import readline  # noqa: F401
    editor = load_editor(arguments)

    def edit(image: Image.Image, instruction: str, seed: int) -> EditedImage:
        [edited] = editor.edit(
            image,
            instruction,
            temperature=arguments.temperature,
            top_k=arguments.top_k or None,
            seed=seed,
            think=arguments.think,
            image_area=image.width * image.height,  # or each turn scales and crops the image a little further
            progress=True,
        )
        return edited

    take_turns(edit, fit_image(source, editor.image_area, editor.codec.factor), output, arguments.seed)


def take_turns(edit: Edit, source: Image.Image, output: Path, seed: int) -> None:
    """Ask for instructions until the input ends; each edits the last result, which is written to `output`.

    Every edit takes the next seed, so that the same instruction after `undo` gives another one. What is wrong with one
    line is said, and the next one is asked for.
    """
    images = [source]
    print(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        word, _, rest = line.partition(" ")
        try:
            if line == "undo":
                if len(images) == 1:
                    raise UserError("this is the source")
                images.pop()
                save_image(images[-1], output)
                print(f"{output}: edit {len(images) - 1}" if len(images) > 1 else f"{output}: the source")
            elif word == "save" and Path(rest.strip()).suffix.lower() in FORMATS:
                save_image(images[-1], Path(rest.strip()))
                print(rest.strip())
            elif word == "save" and len(line.split()) <= 2:
                raise UserError(f"save FILE, with one of the endings {', '.join(FORMATS)}")
            elif line:
                edited = edit(images[-1], line, seed)
                images.append(edited.image)
                save_image(edited.image, output)
                print(f"{output}: edit {len(images) - 1}, seed {seed}")
                if edited.reasoning is not None:
                    print(edited.reasoning)
                seed += 1
        except (UserError, OSError) as error:
            print(error)
