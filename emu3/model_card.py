"""The model card of an exported checkpoint: what it is, what it was trained on, how, and what it scored.

Everything in it is read from the checkpoint (`emu3.checkpoint_facts`) and the files of its run; one without some of
them gets a card that says so. Of paths only the last name is shown, and no address of a judge: a card is for strangers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from emu3.checkpoint_facts import CheckpointFacts, Origin, read_facts, short_name
from emu3.files import read_json
from emu3.hub import HUB_ID
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
    training sets. settings: the run's resolved options."""

    objective: str
    start: str | None = None
    data: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def training_of(run: Path) -> Training:
    """From a run folder of rl.train (config.json) or of SFT (sft_arguments.json); a bare statement from others."""
    grpo, sft = run / "config.json", run / "sft_arguments.json"
    if grpo.is_file() and "objective" in (config := read_json(grpo)):
        preset, own = config["objective"]["preset"], config["objective"].get("own")
        objective = f"`{preset}`{f' with {Path(own).name}' if own else ''}"
        text = f"GRPO with a judge's score, objective {objective}, {config['steps']} steps"
        data = [short_name(path) for path in config["data"]["sets"]]
        return Training(text, short_name(config["model"]), data, _public(config))
    if sft.is_file():
        config = read_json(sft)
        text = "supervised fine-tuning, loss on the edited image"
        data = [short_name(path) for path in config["train_data"]]
        return Training(text, short_name(config["model_name_or_path"]), data, _public(config))
    return Training("not recorded: the checkpoint does not lie in a run folder")


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
    base = started if started is not None and HUB_ID.fullmatch(started) else None
    assert facts.vision is not None and facts.vision.name is not None
    head = ModelCardData(
        base_model=base,
        library_name="earl",  # with `transformers` the Hub would show a snippet that does not edit
        license=license_name or _license_of(base),
        datasets=[each for each in data if HUB_ID.fullmatch(each)] or None,
        pipeline_tag="image-to-image",
        tags=["image-editing", "autoregressive", "emu3", "grpo" if "grpo" in objective.lower() else "sft"],
    )
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
        "## Training",
        "\n".join(
            [
                f"- objective: {objective}",
                f"- started from: {started or 'not recorded'}",
                f"- data: {', '.join(data) or 'not recorded'}",
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


def _license_of(base: str | None) -> str | None:
    """That of the base model's card; `mit`, the project's own, where there is no base; None where it cannot be read."""
    if base is None:
        return "mit"
    try:
        return ModelCard.load(base.partition("@")[0]).data.license  # type: ignore[no-any-return]
    except Exception:  # no card, no network, a malformed head: the Hub then shows no license, which is right
        return None


def _public(config: dict[str, Any]) -> dict[str, Any]:
    def shown(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _public(value)
        if isinstance(value, list):
            return [shown(key, item) for item in value]
        return short_name(value) if isinstance(value, str) and Path(value).is_absolute() else value

    return {key: shown(key, value) for key, value in config.items() if key not in PRIVATE}
