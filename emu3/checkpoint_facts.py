"""What a checkpoint says about itself: `earl.json`, beside its config.json.

```json
{
  "version": 1,
  "image_area": 65536,
  "vision": {"name": "BAAI/Emu3-VisionTokenizer", "sha256": "..."},
  "trained_from": {"name": "org/name", "sha256": "..."},
  "data": [{"name": "simple", "sha256": "..."}],
  "objective": "grpo: corrected",
  "steps": 2000,
  "versions": {"earl-image-editing": "0.1.0", "torch": "2.13.0"}
}
```

SFT, RL, export and `shapes.new_model` write it; whoever needs a vision tokenizer or an image area besides the weights
reads it, so that `--model` alone is enough. A flag only overrides, and a difference is said on standard error.

The digest of the vision tokenizer is what counts (`weights_digest`); its name only says where it was. A folder is named
by its path from the checkpoint where both lie in one tree, so that the tree can be moved, else by its absolute path. A
folder of its name beside the checkpoint is found too. Of a checkpoint from the Hub no path is followed. Checkpoints of
others have no such file: nothing is known of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emu3.errors import UserError
from emu3.files import path_from, place_from, read_json, sha256_of, write_json
from emu3.hub import HUB_ID, SMALL_FILES, local_folder
from emu3.run_folder import VERSION, check_version

FACTS_FILE = "earl.json"
MANIFEST = "manifest.json"  # of a tokenized dataset
FORMAT = 1
DEFAULT_AREA = 65536
"""Pixels of an image where neither a flag nor the checkpoint says: those of the published models."""

LIBRARIES = ("earl-image-editing", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class Origin:
    """Something that a checkpoint was made with. name: Hub id, path or bare name. sha256: of its weights, or of a
    dataset's manifest. None is unknown."""

    name: str | None
    sha256: str | None


@dataclass(frozen=True)
class CheckpointFacts:
    """image_area: pixels of the images that it was trained on, None before it has seen one. vision: its vision
    tokenizer, None if that is inside the checkpoint. objective: `sft`, or `grpo: ` and the preset; None for random
    weights. steps: optimizer steps of it. versions: of the project and what it computes with, by name."""

    image_area: int | None = None
    vision: Origin | None = None
    trained_from: Origin | None = None
    data: tuple[Origin, ...] = ()
    objective: str | None = None
    steps: int | None = None
    versions: dict[str, str] = field(default_factory=lambda: installed_versions(LIBRARIES))


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of the distributions of these names, those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_facts(folder: Path, facts: CheckpointFacts) -> None:
    """Write `earl.json` into the checkpoint's folder, or into a temporary one beside it."""
    if facts.vision is not None and facts.vision.name is not None and Path(facts.vision.name).is_absolute():
        facts = replace(facts, vision=replace(facts.vision, name=path_from(folder, facts.vision.name)))
    write_json(folder / FACTS_FILE, {VERSION: FORMAT, **asdict(facts)})


def read_facts(name: Path | str) -> CheckpointFacts | None:
    """Of the checkpoint in a folder or of a Hub id; None if it has no `earl.json`. A vision tokenizer's path from the
    checkpoint's folder is made an absolute one.

    Raises UserError if it is not of this format, or of a later version of it.
    """
    path = local_folder(name, SMALL_FILES) / FACTS_FILE
    if not path.is_file():
        return None
    values = read_json(path)
    check_version(path, values, FORMAT)
    try:
        facts = CheckpointFacts(
            image_area=values["image_area"],
            vision=_origin(values["vision"]),
            trained_from=_origin(values["trained_from"]),
            data=tuple(origin for item in values["data"] if (origin := _origin(item)) is not None),
            objective=values["objective"],
            steps=values["steps"],
            versions=dict(values["versions"]),
        )
        if not isinstance(facts.image_area, int | None) or (facts.image_area is not None and facts.image_area < 1):
            raise ValueError(f"image_area {facts.image_area!r}")
        if Path(name).is_dir() and facts.vision is not None and facts.vision.name is not None:
            place = place_from(path.parent, facts.vision.name)
            facts = replace(facts, vision=replace(facts.vision, name=place))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not what this command writes ({type(error).__name__}: {error}); remove it"
        ) from None
    return facts


def trained_facts(
    model: Path | str, data: Sequence[Path | str], objective: str, vision: Path | str | None = None
) -> CheckpointFacts:
    """What a checkpoint says that is trained from `model` on tokenized datasets, but for its steps.

    data: their folders, all of one image area and one vision tokenizer. vision: where that is; None asks `model`, if it
    belongs to the same one, and the datasets. Where they do not fit `model` a line on standard error says so. Reads the
    weights of `model` once, for their digest.
    """
    manifests = [read_json(Path(folder) / MANIFEST) for folder in data]
    digest, area = manifests[0].get("vision_sha256"), manifests[0].get("image_area")
    before = read_facts(model) or CheckpointFacts()
    if before.vision is not None and None not in (digest, before.vision.sha256) and digest != before.vision.sha256:
        _note_digests(f"{data[0]} is from a vision tokenizer of", digest, model, before.vision)
    if None not in (area, before.image_area) and area != before.image_area:
        _note(f"{data[0]} has images of {area} pixels, {model} was trained at {before.image_area}")
    if vision is not None:
        place: str | None = _absolute(str(vision))
    elif before.vision is not None and before.vision.sha256 == digest is not None:
        place = before.vision.name
    else:
        place = manifests[0].get("vision") and place_from(data[0], manifests[0]["vision"])
    return CheckpointFacts(
        image_area=area,
        vision=Origin(place, digest),
        trained_from=model_origin(model),
        data=tuple(Origin(Path(folder).name, sha256_of(Path(folder) / MANIFEST)) for folder in data),
        objective=objective,
    )


def vision_origin(name: Path | str) -> Origin:
    """The vision tokenizer in a folder or of a Hub id, with the digest of its weights."""
    return Origin(_absolute(str(name)), weights_digest(name))


def model_origin(name: Path | str) -> Origin:
    """A checkpoint by its Hub id, or by what says most of its path, and the digest of its weights (17 GB take some
    ten seconds)."""
    from emu3.tensor_files import TensorFiles

    return Origin(short_name(str(name)), TensorFiles.of(name).digest())


def short_name(name: str) -> str:
    """A Hub id as it is; of a folder its own name, or its parent's where that says more."""
    place = Path(name)
    if not place.is_absolute() and not place.exists():
        return name
    place = place.absolute()
    return place.parent.name if place.name in ("final", "model", "train") else place.name


@dataclass(frozen=True)
class Setup:
    """What a checkpoint is used with. vision: folder or Hub id, None if it is inside. image_area: in pixels."""

    vision: str | None
    image_area: int


def setup_of(model: Path | str, vision: Path | str | None = None, image_area: int | None = None) -> Setup:
    """The vision tokenizer and the image area for `model`: as given, else as it says itself, else as published.

    What is given and is not what the checkpoint says gets a line on standard error. Raises UserError if the vision
    tokenizer that the checkpoint names is not there or has other weights than it was trained with.
    """
    if image_area is not None and image_area < 1:
        raise UserError(f"an image area of {image_area} pixels is too small: 1 or more")
    facts = read_facts(model)
    given = None if vision is None else str(vision)
    if facts is None:
        return Setup(given, image_area or DEFAULT_AREA)
    if facts.vision is not None:
        if given is None:
            given = _found(model, facts.vision)
        elif facts.vision.sha256 is not None and (digest := weights_digest(given)) != facts.vision.sha256:
            _note_digests(f"the vision tokenizer {given} has", digest, model, facts.vision)
    if None not in (image_area, facts.image_area) and image_area != facts.image_area:
        _note(f"an image area of {image_area} pixels, but {model} was trained at {facts.image_area}")
    return Setup(given, image_area or facts.image_area or DEFAULT_AREA)


def _found(model: Path | str, vision: Origin) -> str:
    """Where the vision tokenizer is: where it was, beside the checkpoint, or on the Hub; its digest is checked."""
    digest = vision.sha256
    what = f"the vision tokenizer of {model}" + (f" (SHA-256 {digest[:12]})" if digest else "")
    if vision.name is None:
        raise UserError(f"{what} is not named in its {FACTS_FILE}: name it as --vision")
    place = vision.name
    local = Path(model).is_dir()
    beside = Path(model).absolute().parent / Path(place).name
    if local and not Path(place).is_dir() and beside.is_dir() and digest in (None, weights_digest(beside)):
        return str(beside)
    if HUB_ID.fullmatch(place) is None and not (local and Path(place).is_dir()):
        raise UserError(f"{what} was at {place}, and is not there: name it as --vision")
    if digest is not None and weights_digest(place) != digest:
        raise UserError(f"{what} was at {place}, which now holds other weights: name the right one as --vision")
    return place


def _origin(values: Any) -> Origin | None:
    if values is None:
        return None
    origin = Origin(**values)
    if not isinstance(origin.name, str | None) or not isinstance(origin.sha256, str | None):
        raise TypeError(f"{values} names nothing")
    return origin


def _absolute(name: str) -> str:
    return os.path.realpath(name) if Path(name).is_dir() else name


def _note_digests(what: str, digest: str, model: Path | str, vision: Origin) -> None:
    assert vision.sha256 is not None
    trained = f"{model} was trained with {vision.sha256[:12]}"
    _note(f"{what} the SHA-256 {digest[:12]}, {trained}: its codes may mean other images")


def weights_digest(name: Path | str) -> str:
    """`emu3.tokenizer.vision_checkpoint.weights_digest`, with torch only once it is called."""
    from emu3.tokenizer import vision_checkpoint

    return vision_checkpoint.weights_digest(name)


@lru_cache
def _note(text: str) -> None:
    """Once for each text: a command may ask for a setup when it begins and again when it loads."""
    print(f"note: {text}", file=sys.stderr, flush=True)
