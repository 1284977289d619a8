"""The model card of an exported checkpoint: what it is, what it was trained on, how, and what it scored.

Everything in it is read from the checkpoint (`emu3.checkpoint_facts`) and the files of its run; one without some of
them gets a card that says so. Of paths only the last name is shown, and no address of a judge: a card is for strangers.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from emu3.checkpoint_facts import MANIFEST, CheckpointFacts, Origin, read_facts, short_name
from emu3.errors import UserError
from emu3.files import read_json
from emu3.hub import HUB_ID
from emu3.mllm.language_model import config_of
from emu3.mllm.small_memory import QUANTIZATIONS, weight_bytes
from emu3.tokenizer.vision_checkpoint import weights_digest

PAPER = "https://arxiv.org/abs/2508.01119"
CITATION = """@inproceedings{earl2025,
  title     = {The Promise of {RL} for Autoregressive Image Editing},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  note      = {arXiv:2508.01119}
}"""
PRIVATE = ("output_dir", "run_name", "base_url", "cache", "watch", "tokenizer_path")


@dataclass(frozen=True)
class Training:
    """How a checkpoint came about. objective: one sentence. start: the model it was trained from. data: names of its
    training sets. settings: the run's resolved options. base: the Hub id that the first of its runs began with.
    datasets: Hub ids of what was tokenized for it."""

    objective: str
    start: str | None = None
    data: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    datasets: list[str] = field(default_factory=list)


def training_of(run: Path) -> Training:
    """From a run folder of rl.train (config.json) or of SFT (sft_arguments.json); a bare statement from others."""
    grpo, sft = run / "config.json", run / "sft_arguments.json"
    if grpo.is_file() and "objective" in (config := read_json(grpo)):
        preset, own = config["objective"]["preset"], config["objective"].get("own")
        objective = f"`{preset}`{f' with {Path(own).name}' if own else ''}"
        text = f"GRPO with a judge's score, objective {objective}, {config['steps']} steps"
        start, sets = config["model"], config["data"]["sets"]
    elif sft.is_file():
        config = read_json(sft)
        text = "supervised fine-tuning, loss on the edited image"
        start, sets = config["model_name_or_path"], config["train_data"]
    else:
        return Training("not recorded: the checkpoint does not lie in a run folder")
    names = [short_name(path) for path in sets]
    if _is_id(start):
        base, before = start.partition("@")[0], []
    else:  # a folder, which may lie in a run folder itself
        earlier = training_of(Path(start).parent) if Path(start).is_dir() else Training("")
        base, before = earlier.base, earlier.datasets
    datasets = list(dict.fromkeys([*before, *(found for path in sets if (found := _dataset_of(path)))]))
    return Training(text, short_name(start), names, _public(config), base, datasets)


def _is_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not Path(name).is_dir()


def _dataset_of(name: str) -> str | None:
    """The Hub id of a training set, without its revision: its own, or of what was tokenized for the folder."""
    manifest = Path(name) / MANIFEST
    if manifest.is_file():
        name = str((read_json(manifest).get("data") or {}).get("name") or "")
    return name.partition("@")[0] if _is_id(name) else None


def exported_facts(
    model: str, training: Training, vision: str, vision_folder: Path | None, image_area: int
) -> CheckpointFacts:
    """What the exported checkpoint says of itself: what `model` says, with the names that hold on the Hub.

    vision: Hub id that its vision tokenizer is to have. vision_folder: where it was exported to, None if it was not.
    """
    before = read_facts(model) or CheckpointFacts(
        trained_from=Origin(training.start, None) if training.start else None,
        data=tuple(Origin(name, None) for name in training.data),
    )
    known = before.vision.sha256 if before.vision is not None and before.vision.name == vision else None
    digest = weights_digest(vision_folder) if vision_folder is not None else known
    return replace(before, vision=Origin(vision, digest), image_area=image_area)


def model_card(
    name: str,
    training: Training,
    config: dict[str, Any],
    facts: CheckpointFacts,
    *,
    license_name: str | None,
    scores: str | None,
) -> str:
    """README.md of the exported folder, with the Hub's metadata at its head.

    name: the repository it is for, such as "org/model". config: the language model's config.json. license_name: None
    is that of the base model, where that can be read. scores: Markdown tables, None if there are none.
    """
    started, data, objective = training.start, training.data, training.objective
    if objective.startswith("not recorded") and facts.objective is not None:
        objective = f"{facts.objective}, {facts.steps} steps"
        started = facts.trained_from.name if facts.trained_from is not None else None
        data = [origin.name for origin in facts.data if origin.name is not None]
    base = training.base
    if base is None and started is not None and _is_id(started):
        base = started.partition("@")[0]
    datasets = training.datasets or [found for each in data if (found := _dataset_of(each))]
    assert facts.vision is not None and facts.vision.name is not None
    head = ModelCardData(
        base_model=base,
        library_name="earl",  # with `transformers` the Hub would show a snippet that does not edit
        datasets=datasets or None,
        pipeline_tag="image-to-image",
        tags=["image-editing", "autoregressive", "emu3", "grpo" if "grpo" in objective.lower() else "sft"],
    )
    for key, value in ({"license": license_name} if license_name else _license_of(base)).items():
        setattr(head, key, value)
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        f"An Emu3-shaped language model that edits images by instruction, after [EARL]({PAPER}).",
        "## Use",
        f'```bash\npython -m emu3.edit --model {name} photo.jpg "make the sky purple" -o out.png\n```',
        "```python\n"
        "from PIL import Image\n\n"
        "from emu3 import Editor\n\n"
        f'editor = Editor.from_pretrained("{name}")\n'
        '[edited] = editor.edit(Image.open("photo.jpg"), "make the sky purple")\n'
        'edited.image.save("out.png")\n'
        "```",
        f"Its vision tokenizer, {facts.vision.name}, and its image area of {facts.image_area} pixels are read from its "
        "`earl.json`. The weights also load with `transformers.Emu3ForCausalLM.from_pretrained`, without remote code.",
        _memory(config),
        "## Training",
        "\n".join(
            [
                f"- objective: {objective}",
                f"- started from: {started or 'not recorded'}" + (f", first from {base}" if base != started else ""),
                f"- data: {', '.join(data) or 'not recorded'}"
                + (f" ({', '.join(datasets)})" if datasets and datasets != data else ""),
                f"- versions: {', '.join(f'{name} {version}' for name, version in facts.versions.items())}",
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
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _memory(config: dict[str, Any]) -> str:
    """What the weights take, counted."""
    shapes = config_of(config, Path("config.json")).shapes
    parts = [f"{weight_bytes(shapes, torch.bfloat16, None) / 1e9:.2g} GB in bfloat16"]
    for quantization in QUANTIZATIONS:
        with suppress(UserError):  # widths that do not suit
            parts.append(f"{weight_bytes(shapes, torch.bfloat16, quantization) / 1e9:.2g} GB in {quantization}")
    return f"Its weights take {', '.join(parts)} (`--quantization`, or `quantization=` in Python)."


def _license_of(base: str | None) -> dict[str, str]:
    """The fields of the base model's card that say its license; `mit`, the project's own, where there is no base; none
    where they cannot be read."""
    if base is None:
        return {"license": "mit"}
    try:
        head = ModelCard.load(base).data
    except Exception:  # no card, no network, a malformed head: the Hub then shows no license, which is right
        return {}
    fields = ("license", "license_name", "license_link")
    return {name: value for name in fields if (value := getattr(head, name, None)) is not None}


def vision_card(name: str, model: str) -> str:
    """README.md of the vision tokenizer that is exported beside a model. name, model: the two repositories."""
    head = ModelCardData(library_name="earl", license="mit", tags=["image-tokenizer", "emu3"])
    return (
        f"---\n{head.to_yaml()}\n---\n\n# {name.rpartition('/')[2]}\n\nThe vision tokenizer of [{model}](https://hugging"
        f"face.co/{model}), which names it in its `earl.json`: images to grids of codes and back, for stills.\n"
    )


def _public(config: dict[str, Any]) -> dict[str, Any]:
    def shown(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _public(value)
        if isinstance(value, list):
            return [shown(key, item) for item in value]
        return short_name(value) if isinstance(value, str) and Path(value).is_absolute() else value

    return {key: shown(key, value) for key, value in config.items() if key not in PRIVATE}
