"""What the editors that are published as diffusers pipelines share: files, device and dtype, seeds, equal sizes.

Only safetensors, JSON and tokenizer files are fetched and read, and of a pipeline's parts only those that edit. A
safety checker is not loaded: it would put black pictures in place of edits, and the published figures had none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from baselines.results import provenance
from emu3.errors import UserError, one_line
from emu3.hub import local_folder

# Weights under their plain names: no copies in half precision, no pickle.
_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors", "*model-*-of-*.safetensors")
_PART_FILES = ("*.json", "*.txt", "*.model", *_WEIGHTS)


def require(*packages: str) -> None:
    """Raise `UserError` naming the first package that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"this editor needs the package {package}: pip install -e '.[eval]'")


def pipeline_folder(name: str, parts: Sequence[str], weights: Sequence[str]) -> Path:
    """The folder of the pipeline `name`, a folder or a Hub id, with the files of `parts`.

    weights: the parts that have weights. Raises `UserError` if it is not there, or one of those has no safetensors.
    """
    folder = local_folder(name, _patterns(parts))
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{name} is no diffusers pipeline: it has no model_index.json")
    for part in weights:
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(
                f"{name} has no {part}/*.safetensors, and pickled weights are not read: convert it "
                "(https://huggingface.co/spaces/safetensors/convert) and name the converted folder or NAME@refs/pr/N"
            )
    return folder


def identity(name: str, folder: Path, parts: Sequence[str]) -> dict[str, str]:
    """What a pipeline is, for the settings of a run (`baselines.results.provenance.identity`)."""
    return provenance.identity(name, folder, _patterns(parts))


def load_pipeline(pipeline_class: Any, name: str, folder: Path, dtype: torch.dtype, **parts: Any) -> Any:
    """The pipeline in `folder`, quiet. Raises `UserError` if the folder holds something else."""
    try:
        pipeline = pipeline_class.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, **parts
        )
    except Exception as error:  # loaders of a dozen classes raise nearly anything
        reason = one_line(error)
        raise UserError(f"{name} cannot be loaded as a {pipeline_class.__name__}: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generators(seed: int, places: Sequence[int]) -> list[torch.Generator]:
    """One source of noise per picture, on the CPU, so that a GPU draws the same. places: of the pictures in the
    batch."""
    seeds = [int(np.random.SeedSequence((seed, place)).generate_state(1)[0]) for place in places]
    return [torch.Generator("cpu").manual_seed(number) for number in seeds]


def _patterns(parts: Sequence[str]) -> list[str]:
    return ["model_index.json", *(f"{part}/{file}" for part in parts for file in _PART_FILES)]


def places_by_size(images: Sequence[Image.Image]) -> list[list[int]]:
    """The places of pictures of equal size, in groups. A pipeline brings all pictures of a call to the first one's
    size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.size, []).append(place)
    return list(groups.values())
