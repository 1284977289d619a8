"""Edit one picture from the command line: `python -m emu3.edit --model M --vision V photo.jpg "..." -o out.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

from emu3.errors import UserError, run_main
from emu3.files import whole_file
from emu3.mllm.editor import Editor
from emu3.tokenizer.images import read_image


def output_paths(path: Path, n: int) -> list[Path]:
    """`path` itself for one picture, else `out-1.png`, `out-2.png`, ... beside it."""
    return [path] if n == 1 else [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, n + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m emu3.edit", description="Edit a picture by an instruction.")
    parser.add_argument("image", type=Path, help="the picture to edit")
    parser.add_argument("instruction", help='what to change, such as "make the sky purple"')
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder of the language model")
    parser.add_argument("--vision", type=Path, required=True, help="checkpoint folder of the image tokenizer")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write; numbered where --n is above 1")
    parser.add_argument("--n", type=int, default=1, help="number of edits (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other edits (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=2048, help="codes to draw among, 0 is all (default: %(default)s)")
    parser.add_argument("--think", action="store_true", help="write a chain of thought first, and print it")
    parser.add_argument("--image-area", type=int, default=65536, help="pixels of the edit (default: %(default)s)")
    arguments = parser.parse_args()

    if arguments.output.suffix.lower() != ".png":
        raise UserError(f"the output is a PNG: give {arguments.output} the ending .png")
    image = read_image(arguments.image, str(arguments.image))
    editor = Editor.from_pretrained(arguments.model, arguments.vision)
    [edits] = editor.edit(
        [image],
        [arguments.instruction],
        n=arguments.n,
        temperature=arguments.temperature,
        top_k=arguments.top_k or None,
        seed=arguments.seed,
        think=arguments.think,
        image_area=arguments.image_area,
    )
    for edit, path in zip(edits, output_paths(arguments.output, arguments.n), strict=True):
        with whole_file(path) as temporary:
            edit.image.save(temporary, format="PNG")
        print(path if edit.reasoning is None else f"{path}: {edit.reasoning}")


if __name__ == "__main__":
    run_main(main)
