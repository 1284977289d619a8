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
  "versions": {"earl": "0.1.0", "torch": "2.13.0"}
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emu3.errors import UserError
from emu3.files import read_json, sha256_of, write_json
from emu3.hub import HUB_ID, SMALL_FILES, local_folder
from emu3.tensor_files import TensorFiles
from emu3.tokenizer.vision_checkpoint import weights_digest

FACTS_FILE = "earl.json"
MANIFEST = "manifest.json"  # of a tokenized dataset
VERSION = 1
DEFAULT_AREA = 65536
"""Pixels of an image where neither a flag nor the checkpoint says: those of the published models."""

LIBRARIES = ("earl", "torch", "transformers", "safetensors")


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
    versions: dict[str, str] = field(default_factory=lambda: versions())


def versions() -> dict[str, str]:
    """Of `LIBRARIES`, those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_facts(folder: Path, facts: CheckpointFacts) -> None:
    """Write `earl.json` into the checkpoint's folder, or into a temporary one beside it."""
    if facts.vision is not None and facts.vision.name is not None and Path(facts.vision.name).is_absolute():
        facts = replace(facts, vision=replace(facts.vision, name=_from(folder, facts.vision.name)))
    write_json(folder / FACTS_FILE, {"version": VERSION, **asdict(facts)})


def read_facts(name: Path | str) -> CheckpointFacts | None:
    """Of the checkpoint in a folder or of a Hub id; None if it has no `earl.json`. A vision tokenizer's path from the
    checkpoint's folder is made an absolute one.

    Raises UserError if it is not of this format, or of a later version of it.
    """
    path = local_folder(name, SMALL_FILES) / FACTS_FILE
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        if values["version"] > VERSION:
            raise UserError(
                f"{path} has version {values['version']}, this program reads versions up to {VERSION}: update it"
            )
        facts = CheckpointFacts(
            image_area=values["image_area"],
            vision=_local(_origin(values["vision"]), path.parent) if Path(name).is_dir() else _origin(values["vision"]),
            trained_from=_origin(values["trained_from"]),
            data=tuple(origin for item in values["data"] if (origin := _origin(item)) is not None),
            objective=values["objective"],
            steps=values["steps"],
            versions=dict(values["versions"]),
        )
        if not isinstance(facts.image_area, int | None) or (facts.image_area is not None and facts.image_area < 1):
            raise ValueError(f"image_area {facts.image_area!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not what this program wrote ({type(error).__name__}: {error}); remove it") from None
    return facts


def trained_facts(
    model: Path | str, data: Sequence[Path | str], objective: str, vision: Path | str | None = None
) -> CheckpointFacts:
    """What a checkpoint says that is trained from `model` on tokenized datasets, but for its steps.

    data: their folders, all of one image area and one vision tokenizer. vision: where that is; None asks `model`, if it
    belongs to the same one, and the datasets. Reads the weights of `model` once, for their digest.
    """
    manifests = [read_json(Path(folder) / MANIFEST) for folder in data]
    digest = manifests[0]["vision_sha256"]
    before = read_facts(model)
    if vision is not None:
        place: str | None = _absolute(str(vision))
    elif before is not None and before.vision is not None and before.vision.sha256 == digest:
        place = before.vision.name
    else:
        place = manifests[0].get("vision")
    return CheckpointFacts(
        image_area=manifests[0]["image_area"],
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
            _note(
                f"the vision tokenizer {given} has the SHA-256 {digest[:12]}, {model} was trained with "
                f"{facts.vision.sha256[:12]}: its codes may mean other images"
            )
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


def _local(origin: Origin | None, folder: Path) -> Origin | None:
    """With the name of a folder that was named by its path from `folder`."""
    if origin is None or origin.name is None:
        return origin
    place = os.path.normpath(folder.absolute() / origin.name)
    return replace(origin, name=place) if HUB_ID.fullmatch(origin.name) is None else origin


def _from(folder: Path, place: str) -> str:
    """The path from `folder`, where both lie in one tree."""
    start, end = os.path.realpath(folder), os.path.realpath(place)
    if len(Path(os.path.commonpath([start, end])).parts) < 3:
        return place
    path = os.path.relpath(end, start)
    return path if path.startswith("..") else f"./{path}"  # which no Hub id looks like


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
