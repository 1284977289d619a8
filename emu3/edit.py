"""Edit images from the command line: `python -m emu3.edit --model M photo.jpg "..." -o out.png`.

One image goes to the PNG that `-o` names, `out-1.png`, `out-2.png`, ... with `--n` above 1. Several images, or an
`-o` that is a folder already, go into that folder under their own names: `photo.png`, or `photo-1.png`, ... An image
is written as soon as it is there, and no source is ever written over. `--model`, `--vision` and `--tokenizer` are
folders or Hub ids (`org/name`, `org/name@revision`). A checkpoint of this project names its vision tokenizer and its
image area itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from emu3.errors import UserError, run_main
from emu3.files import whole_file
from emu3.mllm.layout import THINK_TOKENS
from emu3.tokenizer.images import read_image

if TYPE_CHECKING:
    from emu3 import EditedImage

DTYPES = ("auto", "float32", "bfloat16")


def output_paths(images: list[Path], output: Path, n: int) -> list[list[Path]]:
    """The `n` files of each image.

    Raises UserError if `output` is neither a PNG nor a folder, or a file would be written twice or over a source.
    """
    if len(images) == 1 and not output.is_dir():
        if output.suffix.lower() != ".png":
            raise UserError(f"the output is a PNG or a folder: give {output} the ending .png, or create the folder")
        firsts = [output]
    elif output.suffix.lower() == ".png" or output.is_file():
        raise UserError(f"{len(images)} images go into a folder: {output} is a file's name")
    else:
        firsts = [output / f"{image.stem}.png" for image in images]
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m emu3.edit", description="Edit images by an instruction.")
    parser.add_argument("images", nargs="+", type=Path, metavar="image", help="the images to edit")
    parser.add_argument("instruction", help='what to change, such as "make the sky purple"')
    parser.add_argument("--model", required=True, help="language model: checkpoint folder or Hub id")
    parser.add_argument(
        "--vision", help="vision tokenizer: folder or Hub id (default: the one that the model names or holds)"
    )
    parser.add_argument("--tokenizer", help="text tokenizer: folder or Hub id (default: the one inside the model)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write; for several images a folder")
    parser.add_argument("--n", type=int, default=1, help="number of edits of an image (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other edits (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=2048, help="codes to draw among, 0 is all (default: %(default)s)")
    parser.add_argument("--think", action="store_true", help="write a chain of thought first, and print it")
    parser.add_argument(
        "--think-tokens",
        type=int,
        default=THINK_TOKENS,
        help="most tokens of a chain of thought (default: %(default)s)",
    )
    parser.add_argument(
        "--image-area", type=int, help="pixels of the edit (default: what the model was trained at, else 65536)"
    )
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: the first GPU, else the CPU)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the language model; auto is bfloat16 on a GPU, float32 on a CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--engine", choices=("local", "vllm"), default="local", help="what samples (default: %(default)s)"
    )
    arguments = parser.parse_intermixed_args()

    # What is wrong with the command is said before torch and transformers, which take seconds, are imported.
    paths = output_paths(arguments.images, arguments.output, arguments.n)
    images = [read_image(path, str(path)) for path in arguments.images]
    for folder in {path.parent for group in paths for path in group}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{folder} is a file: choose another output") from None
    import torch
    from tqdm import tqdm

    from emu3 import Editor

    editor = Editor.from_pretrained(
        arguments.model,
        arguments.vision,
        arguments.tokenizer,
        arguments.device,
        None if arguments.dtype == "auto" else getattr(torch, arguments.dtype),
        arguments.engine,
        arguments.image_area,
    )

    def write(index: int, edits: list[EditedImage]) -> None:
        for edit, path in zip(edits, paths[index], strict=True):
            with whole_file(path) as temporary:
                edit.image.save(temporary, format="PNG")
            # `write` of tqdm keeps the line clear of the bar.
            cut = " [cut: there were no more tokens, see --think-tokens]" if edit.cut else ""
            tqdm.write(str(path) if edit.reasoning is None else f"{path}: {edit.reasoning}{cut}")

    editor.edit(
        images,
        [arguments.instruction] * len(images),
        n=arguments.n,
        temperature=arguments.temperature,
        top_k=arguments.top_k or None,
        seed=arguments.seed,
        think=arguments.think,
        think_tokens=arguments.think_tokens,
        progress=True,
        ready=write,
    )


if __name__ == "__main__":
    run_main(main)
