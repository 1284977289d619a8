"""The published baselines, which are diffusers pipelines: InstructPix2Pix, MagicBrush, AURORA, OmniGen.

InstructPix2Pix (Brooks et al., 2023) and what was trained from it, MagicBrush and AURORA, are Stable Diffusion 1.5 with
the source as further input channels, one pipeline of diffusers. The published evaluation took the pipeline's defaults
(100 steps, guidance 7.5 for the text and 1.5 for the image), the ancestral Euler sampler for the first two and the
checkpoint's own for AURORA, and ran at the dataset's size without seeds. It put images of several sizes into one call,
which brings all of them to the size of the first; here a call has one.

OmniGen (Xiao et al., 2024) gets every source at 512x512 whatever its shape, with guidance 2 for the text and 1.6 for
the image; the number of steps is the pipeline's default. Here the image is brought back to the shape of its source, so
that a judge compares like with like; the published evaluation showed a square. It drew the noise of each batch from
seed 222.

Only safetensors, JSON and tokenizer files are fetched and read, and of a pipeline's parts only those that edit. A
safety checker is not loaded: it would put black images in place of edits, and the published scores had none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from baselines.editors.editing import (
    AURORA,
    INSTRUCT_PIX2PIX,
    MAGICBRUSH,
    OMNIGEN,
    ChosenEditor,
    Edited,
    EditorOptions,
    EditResult,
    ImageEditor,
    NoImage,
    local_device,
)
from baselines.results.records import identity
from emu3.errors import UserError, one_line
from emu3.hub import local_folder

MODELS = {
    INSTRUCT_PIX2PIX: "timbrooks/instruct-pix2pix",
    MAGICBRUSH: "vinesmsuic/magicbrush-paper",
    AURORA: "McGill-NLP/AURORA",
    OMNIGEN: "Shitao/OmniGen-v1-diffusers",
}
EULER_ANCESTRAL = (INSTRUCT_PIX2PIX, MAGICBRUSH)
PIX2PIX_STEPS, PIX2PIX_GUIDANCE, PIX2PIX_IMAGE_GUIDANCE = 100, 7.5, 1.5
OMNIGEN_STEPS, OMNIGEN_GUIDANCE, OMNIGEN_IMAGE_GUIDANCE = 50, 2.0, 1.6
OMNIGEN_SIDE = 512

# The parts that have weights; a scheduler and a tokenizer have all.
PIX2PIX_WEIGHTS = ("text_encoder", "unet", "vae")
OMNIGEN_WEIGHTS = ("transformer", "vae")
# Weights under their plain names: no copies in half precision, no pickle.
_WEIGHT_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "*model-*-of-*.safetensors")
_PART_FILES = ("*.json", "*.txt", "*.model", *_WEIGHT_FILES)


class Pix2PixEditor:
    """InstructPix2Pix, MagicBrush or AURORA as an `ImageEditor`; images come out with sides cut to multiples of 8.

    euler_ancestral: replaces the checkpoint's sampler. device: float16 on a GPU as published, float32 on a CPU.
    """

    def __init__(self, name: str, folder: Path, euler_ancestral: bool, steps: int, device: torch.device) -> None:
        from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

        self._pipeline = _load_pipeline(
            StableDiffusionInstructPix2PixPipeline,
            name,
            folder,
            torch.float16 if device.type == "cuda" else torch.float32,
            safety_checker=None,
            requires_safety_checker=False,
            feature_extractor=None,
            image_encoder=None,
        )
        if euler_ancestral:
            config = self._pipeline.scheduler.config
            self._pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(config)
        self._pipeline.to(device)
        self._steps = steps

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[EditResult]:
        results: list[EditResult] = [NoImage("the pipeline gave fewer images than it was asked for")] * len(images)
        places_by_size: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            places_by_size.setdefault(image.size, []).append(place)
        for places in places_by_size.values():
            edited = self._pipeline(
                prompt=[instructions[place] for place in places],
                image=[images[place] for place in places],
                num_inference_steps=self._steps,
                guidance_scale=PIX2PIX_GUIDANCE,
                image_guidance_scale=PIX2PIX_IMAGE_GUIDANCE,
                generator=_generators(seed, places),
            ).images
            for place, image in zip(places, edited, strict=False):
                results[place] = Edited(image)
        return results


class OmniGenEditor:
    """OmniGen as an `ImageEditor`; images come out at the size of their sources.

    device: bfloat16 on a GPU as published, float32 on a CPU.
    """

    def __init__(self, name: str, folder: Path, steps: int, device: torch.device) -> None:
        from diffusers import OmniGenPipeline

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._pipeline = _load_pipeline(OmniGenPipeline, name, folder, dtype)
        self._pipeline.to(device)
        self._steps = steps

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[EditResult]:
        side = (OMNIGEN_SIDE, OMNIGEN_SIDE)
        edited = self._pipeline(
            prompt=[f"<img><|image_1|></img> {instruction}" for instruction in instructions],
            input_images=[[image.resize(side, Image.Resampling.BICUBIC)] for image in images],
            num_inference_steps=self._steps,
            guidance_scale=OMNIGEN_GUIDANCE,
            img_guidance_scale=OMNIGEN_IMAGE_GUIDANCE,
            use_input_image_size_as_output=True,
            generator=_generators(seed, range(len(images))),
        ).images
        return [
            Edited(square.resize(image.size, Image.Resampling.BICUBIC))
            for square, image in zip(edited, images, strict=False)
        ]


def choose_diffusers(kind: str, options: EditorOptions) -> ChosenEditor:
    """Raises `UserError` for a package that is not installed, for options that cannot be, and for weights that cannot
    be had."""
    return _choose_omnigen(options) if kind == OMNIGEN else _choose_pix2pix(kind, options)


def needed_files(kind: str, options: EditorOptions) -> tuple[str, list[str]]:
    """The pipeline's folder or Hub id, and the patterns of its files. Raises `UserError` for a package that is not
    installed."""
    _require(*(("diffusers", "torchvision") if kind == OMNIGEN else ("diffusers",)))
    return options.model or MODELS[kind], _patterns(OMNIGEN_WEIGHTS if kind == OMNIGEN else PIX2PIX_WEIGHTS)


def _choose_pix2pix(kind: str, options: EditorOptions) -> ChosenEditor:
    (name, _), steps = needed_files(kind, options), _steps(options, PIX2PIX_STEPS)
    folder, weights = _pipeline_files(name, PIX2PIX_WEIGHTS)
    euler_ancestral = kind in EULER_ANCESTRAL
    settings = {
        "weights": {"model": weights},
        "steps": steps,
        "guidance": PIX2PIX_GUIDANCE,
        "image_guidance": PIX2PIX_IMAGE_GUIDANCE,
        "scheduler": "EulerAncestralDiscreteScheduler" if euler_ancestral else "the checkpoint's",
    }
    return _on_device(
        kind,
        settings,
        batch_size=8,
        equal_sizes=True,
        make=lambda device: Pix2PixEditor(name, folder, euler_ancestral, steps, device),
    )


def _choose_omnigen(options: EditorOptions) -> ChosenEditor:
    (name, _), steps = needed_files(OMNIGEN, options), _steps(options, OMNIGEN_STEPS)
    folder, weights = _pipeline_files(name, OMNIGEN_WEIGHTS)
    settings = {
        "weights": {"model": weights},
        "steps": steps,
        "guidance": OMNIGEN_GUIDANCE,
        "image_guidance": OMNIGEN_IMAGE_GUIDANCE,
        "side": OMNIGEN_SIDE,
    }
    return _on_device(
        OMNIGEN,
        settings,
        batch_size=10,  # as published
        equal_sizes=False,
        make=lambda device: OmniGenEditor(name, folder, steps, device),
    )


def _on_device(
    kind: str,
    settings: dict[str, Any],
    *,
    batch_size: int,
    equal_sizes: bool,
    make: Callable[[torch.device], ImageEditor],
) -> ChosenEditor:
    device = local_device()

    def load() -> AbstractContextManager[ImageEditor]:
        return nullcontext(make(device))

    return ChosenEditor(kind, kind, {**settings, "device": device.type}, batch_size, equal_sizes, load)


def _require(*packages: str) -> None:
    """Raise `UserError` naming the first package that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            # torchvision is no part of the extra: its build has to be that of the torch that is there.
            what = "torchvision, from the index that torch is from" if package == "torchvision" else "-e '.[eval]'"
            raise UserError(f"this editor needs the package {package}: pip install {what}")


def _steps(options: EditorOptions, default: int) -> int:
    steps = default if options.steps is None else options.steps
    if steps < 1:
        raise UserError(f"steps are at least 1: {steps}")
    return steps


def _pipeline_files(name: str, weights: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The folder of the pipeline `name`, a folder or a Hub id, and what it is (`baselines.results.records`).

    weights: the parts that have weights. Raises `UserError` if it is not there, or one of those has no safetensors.
    """
    patterns = _patterns(weights)
    folder = local_folder(name, patterns)
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{name} is no diffusers pipeline: it has no model_index.json")
    for part in weights:
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(
                f"{name} has no {part}/*.safetensors, and pickled weights are not read: convert it "
                "(https://huggingface.co/spaces/safetensors/convert) and name the converted folder or NAME@refs/pr/N"
            )
    return folder, identity(name, folder, patterns)


def _patterns(weights: Sequence[str]) -> list[str]:
    parts = ("scheduler", "tokenizer", *weights)
    return ["model_index.json", *(f"{part}/{file}" for part in parts for file in _PART_FILES)]


def _load_pipeline(pipeline_class: Any, name: str, folder: Path, dtype: torch.dtype, **parts: Any) -> Any:
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


def _generators(seed: int, places: Sequence[int]) -> list[torch.Generator]:
    """One source of noise per image, on the CPU, so that a GPU draws the same. places: of the images in the batch."""
    seeds = [int(np.random.SeedSequence((seed, place)).generate_state(1)[0]) for place in places]
    return [torch.Generator("cpu").manual_seed(number) for number in seeds]
