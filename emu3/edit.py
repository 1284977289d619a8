"""Edit images from the command line: `python -m emu3.edit --model M photo.jpg "..." -o out.png`.

| images | instruction | what comes out |
|---|---|---|
| `photo.jpg` | the last argument | `out.png`, `.jpg` or `.webp`; `out-1.png`, `out-2.png`, ... with `--n` above 1 |
| several, or a folder | the last argument | a folder: `photo.png`, or `photo-1.png`, ... of each image |
| the same | `--instructions one.txt` | the same |
| in a table | `--instructions table.csv`, or `.jsonl`: columns image, instruction, perhaps output | the same |
| `photo.jpg` | none, at a terminal | it asks for instructions, each for the last result (`emu3.edit_turns`) |

An image is written as soon as it is there, and no source is ever written over. Of a folder what is there already is
skipped, so that a call continues one that was interrupted, with the same samples; images that cannot be read are
skipped as well, and the command ends with code 2. `--model`, `--vision` and `--tokenizer` are folders or Hub ids
(`org/name`, `org/name@revision`). A checkpoint of this project names its vision tokenizer and its image area itself.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from emu3.errors import UserError, run_main
from emu3.files import whole_file
from emu3.flags import CommandParser
from emu3.mllm.layout import THINK_TOKENS
from emu3.settings import COUNT, SEED, number_in
from emu3.tokenizer.images import fit_image, read_image

if TYPE_CHECKING:
    from emu3 import EditedImage, Editor

DTYPES = ("auto", "float32", "bfloat16")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What is written, by the ending of the file's name."""
QUALITY = 95  # of JPEG and WebP, of 100
READABLE = (*FORMATS, ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
"""Endings of what is taken for an image in a folder."""
GAP = 8  # pixels between the images of a grid


@dataclass(frozen=True)
class Job:
    """One image to edit. number: its place among all images of the call, finished ones too: part of its seed."""

    image: Path
    instruction: str
    outputs: list[Path]
    number: int


def output_paths(
    images: Sequence[Path], output: Path, n: int, suffix: str = ".png", names: Sequence[str] | None = None
) -> list[list[Path]]:
    """The `n` files of each image.

    suffix: of the files in a folder. names: of the files in a folder, None takes the images' own. Raises UserError if
    `output` is neither a folder nor a file of `FORMATS`, or a file would be written twice or over a source.
    """
    if len(images) == 1 and not output.is_dir() and names is None:
        if output.suffix.lower() not in FORMATS:
            raise UserError(
                f"the output is an image file or a folder: give {output} the ending .png, .jpg or .webp, or create the "
                "folder"
            )
        firsts = [output]
    elif output.suffix.lower() in FORMATS or output.is_file():
        raise UserError(f"{len(images)} images go into a folder: {output} is a file's name")
    else:
        firsts = [output / f"{Path(name).stem}{suffix}" for name in names or [image.name for image in images]]
    paths = [
        [first] if n == 1 else [first.with_name(f"{first.stem}-{number}{first.suffix}") for number in range(1, n + 1)]
        for first in firsts
    ]
    sources = {image.resolve() for image in images}
    seen: set[Path] = set()
    for path in (path for group in paths for path in group):
        if path.resolve() in sources:
            raise UserError(f"{path} is an image to edit: choose another output")
        if path in seen:
            raise UserError(f"{path} would be written twice: rename one of the images")
        seen.add(path)
    return paths


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """What `load_editor` reads; edit and demo have it in common."""
    parser.add_argument("--model", required=True, help="language model: checkpoint folder or Hub id (required)")
    parser.add_argument(
        "--vision", help="vision tokenizer: folder or Hub id (default: the one that the model names or holds)"
    )
    parser.add_argument("--tokenizer", help="text tokenizer: folder or Hub id (default: the one inside the model)")
    parser.add_argument(
        "--image-area", type=int, help="pixels of the edit (default: what the model was trained at, else 65536)"
    )
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: the first GPU, else the CPU)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the language model; auto is bfloat16 on a GPU, on a CPU that computes in it if the model is stored "
        "in it, else float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--quantization",
        choices=("8bit", "4bit"),
        help="bits per weight of the layers; needs bitsandbytes (default: none)",
    )
    parser.add_argument(
        "--device-map",
        choices=("auto",),
        help="auto keeps the layers that do not fit on the GPU in main memory, which is slow (default: none)",
    )
    parser.add_argument(
        "--engine", choices=("local", "vllm"), default="local", help="what samples (default: %(default)s)"
    )
    parser.add_argument(
        "--think-tokens",
        type=int,
        default=THINK_TOKENS,
        help="most tokens of a chain of thought (default: %(default)s)",
    )


def load_editor(arguments: argparse.Namespace) -> Editor:
    """The editor that the flags of `add_model_flags` describe. Imports torch."""
    import torch

    from emu3 import Editor

    if arguments.think_tokens < 1:
        raise UserError(f"--think-tokens is {arguments.think_tokens}; it is 1 or more")
    editor = Editor.from_pretrained(
        arguments.model,
        arguments.vision,
        arguments.tokenizer,
        arguments.device,
        None if arguments.dtype == "auto" else getattr(torch, arguments.dtype),
        arguments.engine,
        arguments.image_area,
        arguments.quantization,
        arguments.device_map,
    )
    editor.think_tokens = arguments.think_tokens
    return editor


def main() -> None:
    parser = CommandParser(prog="python -m emu3.edit", description="Edit images by an instruction.")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="image",
        help='images to edit or a folder of them, and behind them what to change, such as "make the sky purple"; one '
        "image without an instruction asks for instructions, each for the last result",
    )
    add_model_flags(parser)
    parser.add_argument("-o", "--output", type=Path, help="file to write (.png, .jpg, .webp); for several a folder")
    parser.add_argument(
        "--instructions",
        type=Path,
        help="file with the one instruction for all images, or a .csv or .jsonl with columns image and instruction, "
        "perhaps output (default: the last argument)",
    )
    parser.add_argument(
        "--format", choices=("png", "jpg", "webp"), default="png", help="of files in a folder (default: %(default)s)"
    )
    parser.add_argument("--n", type=COUNT, default=1, help="number of edits of an image (default: %(default)s)")
    parser.add_argument("--grid", action="store_true", help="also one image with the source and its edits in a row")
    parser.add_argument("--seed", type=SEED, default=0, help="another seed gives other edits (default: %(default)s)")
    parser.add_argument(
        "--temperature",
        type=number_in(float, least=0, most=1e6),
        default=1.0,
        help="0 is greedy (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k",
        type=number_in(int, least=0),
        default=2048,
        help="codes to draw among, 0 is all (default: %(default)s)",
    )
    parser.add_argument("--think", action="store_true", help="write a chain of thought first, and print it")
    arguments = parser.parse_intermixed_args()

    # What is wrong with the command is said before torch and transformers, which take seconds, are imported.
    if len(arguments.images) == 1 and arguments.instructions is None:
        from emu3.edit_turns import main as edit_turns

        edit_turns(arguments)
        return
    if arguments.output is None:
        raise UserError("no output: -o out.png, or a folder for several images")
    if arguments.n < 1:
        raise UserError(f"--n is the number of edits, 1 or more: {arguments.n}")
    jobs, unusable = _usable(_jobs(arguments), arguments)
    if jobs:
        _edit(jobs, arguments)
    if unusable:
        raise UserError(f"{unusable} images could not be read and were left out, see above")


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """Every image of the call with its instruction and its files."""
    suffix, names = f".{arguments.format}", None
    if arguments.instructions is not None and arguments.instructions.suffix.lower() in (".csv", ".jsonl"):
        if arguments.images:
            raise UserError(f"{arguments.instructions} names the images: {arguments.images[0]} is one too many")
        images, instructions, names = _table(arguments.instructions)
    else:
        named = list(arguments.images)
        text = _text(arguments.instructions) if arguments.instructions is not None else named.pop() if named else ""
        if not named:
            raise UserError("no image: name one, or a folder, and what to change behind it")
        images = [image for name in named for image in _images(Path(name))]
        if any(Path(name).is_dir() for name in named):
            names = [image.name for image in images]
        instructions = [text] * len(images)
    paths = output_paths(images, arguments.output, arguments.n, suffix, names)
    return [Job(*parts, number) for number, parts in enumerate(zip(images, instructions, paths, strict=True))]


def _images(path: Path) -> list[Path]:
    """`path` itself, or of a folder the images in it, by name."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in READABLE and file.is_file())
    if not found:
        raise UserError(f"{path} holds no image ({', '.join(READABLE)})")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"--instructions {path} cannot be read: {error}") from None


def _table(path: Path) -> tuple[list[Path], list[str], list[str]]:
    """Images, instructions and the names of their outputs."""
    from emu3.train_image_editing.image_folder import ImageFolder
    from emu3.train_image_editing.image_rows import BadRow, Columns, read_instruction

    columns = Columns(source="image", instruction="instruction", extra=("output",))
    images, instructions, names = [], [], []
    table = ImageFolder([path], columns)
    for number, row in enumerate(table.read(range(len(table)))):
        try:
            if isinstance(row, BadRow):
                raise row
            if row["image"] is None:
                raise BadRow("it names no image")
            image = row["image"].folder / row["image"].name
            instructions.append(read_instruction(row, columns))
        except BadRow as error:
            raise UserError(f"{path}, row {number}: {error}") from None
        images.append(image)
        names.append(row.get("output") or image.name)
    return images, instructions, names


def _usable(jobs: list[Job], arguments: argparse.Namespace) -> tuple[list[Job], int]:
    """The jobs that are left to do, and how many images cannot be read. A single file is written anew, and an image
    that was named has to be readable; in a folder or a table one that is not does not keep the others waiting."""
    into_folder = jobs[0].outputs[0].parent == arguments.output
    named = {Path(name) for name in arguments.images}
    left, unusable, done = [], 0, 0
    for job in jobs:
        if into_folder and all(path.is_file() for path in job.outputs):
            done += 1
            continue
        try:
            read_image(job.image, str(job.image))
        except UserError as error:
            if job.image in named:
                raise
            print(f"left out: {error}", file=sys.stderr)
            unusable += 1
            continue
        left.append(job)
    if done:
        print(f"skipped {done} of {len(jobs)} images: {arguments.output} has their edits; remove one to make it anew")
    for folder in {path.parent for job in left for path in job.outputs}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{folder} is a file: choose another output") from None
    return left, unusable


class _Files(Sequence[Image.Image]):
    """Images that are read when they are asked for: a folder of photos need not fit into memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]  # no slices are asked for
        return read_image(self._paths[index], str(self._paths[index]))


def _edit(jobs: Sequence[Job], arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    editor = load_editor(arguments)

    def write(index: int, edits: list[EditedImage]) -> None:
        for edit, path in zip(edits, jobs[index].outputs, strict=True):
            save_image(edit.image, path)
            # `write` of tqdm keeps the line clear of the bar.
            cut = " [cut: there were no more tokens, see --think-tokens]" if edit.cut else ""
            tqdm.write(str(path) if edit.reasoning is None else f"{path}: {edit.reasoning}{cut}")
        if arguments.grid:
            source = fit_image(read_image(jobs[index].image, "image"), editor.image_area, editor.codec.factor)
            first = jobs[index].outputs[0]
            stem = first.stem if arguments.n == 1 else first.stem.removesuffix("-1")
            save_image(in_a_row([source, *(edit.image for edit in edits)]), first.with_stem(f"{stem}-grid"))

    try:
        editor.edit(
            _Files([job.image for job in jobs]),
            [job.instruction for job in jobs],
            n=arguments.n,
            temperature=arguments.temperature,
            top_k=arguments.top_k or None,
            seed=arguments.seed,
            think=arguments.think,
            progress=True,
            ready=write,
            numbers=[job.number for job in jobs],
        )
    except UserError as error:
        raise UserError(re.sub(r"^image (\d+)", lambda match: str(jobs[int(match[1])].image), str(error))) from error


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image whole or not at all, in the format that the ending of `path` says."""
    kind = FORMATS[path.suffix.lower()]
    settings = {} if kind == "PNG" else {"quality": QUALITY}
    with whole_file(path) as temporary:
        image.save(temporary, format=kind, **settings)


def in_a_row(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size side by side on white."""
    width, height = images[0].size
    row = Image.new("RGB", ((width + GAP) * len(images) - GAP, height), "white")
    for place, image in enumerate(images):
        row.paste(image, (place * (width + GAP), 0))
    return row


if __name__ == "__main__":
    run_main(main)
