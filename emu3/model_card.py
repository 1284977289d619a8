"""The model card of an exported checkpoint: what it is, what it was trained on, how, and what it scored.

Everything in it is read from the files of the run; a run without some of them gets a card that says so. Of paths only
the last name is shown, and no address of a judge: a card is for strangers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from emu3.files import read_json

PAPER = "https://arxiv.org/abs/2508.01119"
PRIVATE = ("output_dir", "run_name", "base_url", "cache", "watch", "tokenizer_path")


@dataclass(frozen=True)
class Training:
    """How a checkpoint came about. objective: one sentence. start: the model it was trained from. data: names of its
    training sets. settings: the run's resolved options."""

    objective: str
    start: str | None = None
    data: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def training_of(run: Path) -> Training:
    """From a run folder of rl.train (config.json) or of SFT (sft_arguments.json); a bare statement from others."""
    grpo, sft = run / "config.json", run / "sft_arguments.json"
    if grpo.is_file() and "objective" in (config := read_json(grpo)):
        objective = config["objective"]["preset"]
        text = f"GRPO with a judge's score, objective `{objective}`, {config['steps']} steps"
        return Training(text, _name(config["model"]), [_name(path) for path in config["data"]["sets"]], _public(config))
    if sft.is_file():
        config = read_json(sft)
        sets = [_name(path) for path in config["train_data"]]
        return Training(
            "supervised fine-tuning, loss on the edited image",
            _name(config["model_name_or_path"]),
            sets,
            _public(config),
        )
    return Training("not recorded: the checkpoint does not lie in a run folder")


def model_card(
    name: str,
    training: Training,
    config: dict[str, Any],
    *,
    vision: str,
    image_area: int,
    license_name: str,
    scores: str | None,
) -> str:
    """README.md of the exported folder, with the Hub's metadata at its head.

    name: the repository it is for, such as "org/model". config: the language model's config.json. vision: the image
    tokenizer it belongs to. image_area: pixels of its images. scores: Markdown tables, None if there are none.
    """
    base = training.start if training.start and "/" in training.start else None
    head = ModelCardData(
        base_model=base,
        library_name="transformers",
        license=license_name,
        pipeline_tag="image-to-image",
        tags=["image-editing", "autoregressive", "emu3", "grpo" if training.objective.startswith("GRPO") else "sft"],
    )
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        f"An Emu3-shaped language model that edits images by instruction, after [EARL]({PAPER}).",
        "## Use",
        "```bash\n"
        f"python -m emu3.edit --model {name} --vision {vision} --image-area {image_area} \\\n"
        '    photo.jpg "make the sky purple" -o out.png\n'
        "```",
        "The weights also load with `transformers.Emu3ForCausalLM.from_pretrained`, without remote code.",
        "## Training",
        "\n".join(
            [
                f"- objective: {training.objective}",
                f"- started from: {training.start or 'not recorded'}",
                f"- data: {', '.join(training.data) or 'not recorded'}",
            ]
        ),
    ]
    if training.settings:
        parts.append(f"```json\n{json.dumps(training.settings, indent=2)}\n```")
    parts += ["## Scores", scores.strip() if scores else "None were recorded with this checkpoint."]
    parts += [
        "## Shape",
        "| | |\n|---|---|\n" + "\n".join(f"| {size} | {config.get(size)} |" for size in sizes),
        "## Limits",
        "It edits what its training data edit and keeps its judge's taste. Faces, text and fine detail pass through a "
        "grid of codes, one for each square of pixels, and come out changed.",
    ]
    return "\n\n".join(parts) + "\n"


def _public(config: dict[str, Any]) -> dict[str, Any]:
    def shown(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _public(value)
        if isinstance(value, list):
            return [shown(key, item) for item in value]
        return _name(value) if isinstance(value, str) and Path(value).is_absolute() else value

    return {key: shown(key, value) for key, value in config.items() if key not in PRIVATE}


def _name(path: str) -> str:
    """A Hub id as it is; of a folder its own name, or its parent's where that says more."""
    place = Path(path)
    if not place.is_absolute() and not place.exists():
        return path
    return place.parent.name if place.name in ("final", "model", "train") else place.name
