"""Write a checkpoint as a folder that can be pushed to the Hub.

    python -m emu3.export --model runs/quickstart/sft_s__rl_sc/final --name org/earl-shapes \\
        --scores runs/quickstart/table.md --output export/earl-shapes
    hf upload org/earl-shapes export/earl-shapes

The folder gets the weights as safetensors (with an index if there are several files), the config, the tokenizer's
files, what the checkpoint says about itself (`emu3.checkpoint_facts`) and a model card. A local vision tokenizer is
written beside it, as OUTPUT-vision, for a repository of its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from emu3.errors import UserError, run_main
from emu3.files import read_json, whole_folder
from emu3.flags import CommandParser
from emu3.settings import COUNT

if TYPE_CHECKING:
    from emu3.tokenizer.model import StillVQ

DTYPES = ("float32", "bfloat16", "float16")


def export(
    model: str,
    output: Path,
    *,
    name: str,
    vision: str | None = None,
    tokenizer: str | None = None,
    scores: Path | None = None,
    run: Path | None = None,
    dtype: str = "bfloat16",
    image_area: int | None = None,
    license_name: str | None = None,
    max_shard_size: str = "5GB",
) -> list[Path]:
    """Export `model`, a folder or Hub id, and the vision tokenizer `vision` if it is a folder; returns the folders.

    name: repository that the card is written for. vision, image_area: None takes what `model` says itself. tokenizer:
    where the text tokenizer is, if not beside the weights. scores: Markdown file whose text goes into the card. run:
    folder of the training run, by default the parent of `model`. dtype: of the exported weights. license_name: None is
    that of the base model, where that can be read. Raises UserError if something is missing or an output exists;
    a call that was ended goes on with the vision tokenizer that it left.
    """
    import torch

    from emu3.checkpoint_facts import setup_of
    from emu3.hub import HUB_ID
    from emu3.mllm.language_model import load_language_model, save_checkpoint
    from emu3.mllm.text_tokenizer import TextTokenizer
    from emu3.model_card import exported_facts, model_card, training_of, vision_card
    from emu3.tokenizer.model import StillVQ

    if HUB_ID.fullmatch(name) is None or "@" in name:
        raise UserError(f"--name {name} is no repository id: expected org/name")
    if not re.fullmatch(r"\d+(\.\d+)?[KMG]B", max_shard_size):
        raise UserError(f"--max-shard-size {max_shard_size}: expected a number with KB, MB or GB, such as 5GB")
    if scores is not None and not scores.is_file():
        raise UserError(f"--scores {scores} does not exist")
    setup = setup_of(model, vision, image_area)
    if setup.vision is None:
        raise UserError(f"{model} does not say which vision tokenizer it belongs to: name it as --vision")
    vision_output = output.with_name(f"{output.name}-vision")
    folders = [output, vision_output] if Path(setup.vision).is_dir() else [output]
    if os.path.lexists(output):  # a link whose disk is not there is one as well
        raise UserError(f"{output} exists: choose another --output or remove it")

    text_tokenizer = TextTokenizer.from_pretrained(tokenizer or model)
    codec = StillVQ.from_pretrained(setup.vision) if len(folders) == 2 else None
    if codec is not None and codec.config.codebook_size != text_tokenizer.layout.codebook_size:
        codes = codec.config.codebook_size, text_tokenizer.layout.codebook_size
        raise UserError(
            f"{setup.vision} has {codes[0]} codes, the text tokenizer {codes[1]}: they do not belong together"
        )
    if codec is not None and not vision_output.exists():
        with whole_folder(vision_output) as temporary:
            codec.save_pretrained(temporary)
            (temporary / "README.md").write_text(vision_card(f"{name}-vision", name), encoding="utf-8")
    elif codec is not None and not _holds(vision_output, codec):
        # Else a call before this one wrote it and was ended before the model, which is written last.
        raise UserError(f"{vision_output} exists and holds something else: choose another --output or remove it")
    training = training_of(run or Path(model).parent)
    vision_name = f"{name}-vision" if codec is not None else setup.vision
    facts = exported_facts(model, training, vision_name, vision_output if codec is not None else None, setup.image_area)
    language_model = load_language_model(model, getattr(torch, dtype))
    with whole_folder(output) as temporary:
        save_checkpoint(language_model, text_tokenizer, temporary, max_shard_size, facts=facts)
        card = model_card(
            name,
            training,
            read_json(temporary / "config.json"),
            facts,
            license_name=license_name,
            scores=scores.read_text(encoding="utf-8") if scores is not None else None,
        )
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return folders


def _holds(folder: Path, codec: StillVQ) -> bool:
    """Whether `folder` holds the weights of `codec`."""
    try:
        found = type(codec).from_pretrained(folder).state_dict()
    except UserError:
        return False
    expected = codec.state_dict()
    return found.keys() == expected.keys() and all(value.equal(found[name]) for name, value in expected.items())


def main() -> None:
    parser = CommandParser(description="Write a checkpoint as a folder for the Hub.")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--name", required=True, help="repository it is for, org/name")
    parser.add_argument(
        "--vision", help="vision tokenizer: a folder, exported too, or an id (default: the one that the model names)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--tokenizer", help="folder or Hub id of the text tokenizer (default: beside the weights)")
    parser.add_argument("--scores", type=Path, help="Markdown tables for the card, such as a run's table.md")
    parser.add_argument("--run", type=Path, help="folder of the training run (default: the parent of --model)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--image-area", type=COUNT, help="pixels of an image (default: what the model was trained at, else 65536)"
    )
    parser.add_argument("--license", dest="license_name", help="(default: that of the base model, mit without one)")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weights file (default: %(default)s)")
    options = vars(parser.parse_args())
    folders = export(options.pop("model"), options.pop("output"), **options)
    name = options["name"]
    for folder, repository in zip(folders, (name, f"{name}-vision"), strict=False):
        print(f"hf upload {repository} {folder}")


if __name__ == "__main__":
    run_main(main)
