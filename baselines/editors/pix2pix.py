"""InstructPix2Pix (Brooks et al., 2023) and what was trained from it: MagicBrush and AURORA.

All three are Stable Diffusion 1.5 with the source as further input channels, one pipeline of diffusers. The published
evaluation took the pipeline's defaults (100 steps, guidance 7.5 for the text and 1.5 for the picture), the ancestral
Euler sampler for the first two and the checkpoint's own for AURORA, and ran at the data set's size without seeds. It
put pictures of several sizes into one call, which brings all of them to the size of the first; here a call has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from baselines.editors.diffusers_parts import generators, load_pipeline, places_by_size
from baselines.editors.names import AURORA, INSTRUCT_PIX2PIX, MAGICBRUSH
from baselines.editors.protocol import Answer, Edited, NoPicture

MODELS = {
    INSTRUCT_PIX2PIX: "timbrooks/instruct-pix2pix",
    MAGICBRUSH: "vinesmsuic/magicbrush-paper",
    AURORA: "McGill-NLP/AURORA",
}
EULER_ANCESTRAL = (INSTRUCT_PIX2PIX, MAGICBRUSH)
STEPS = 100
GUIDANCE, IMAGE_GUIDANCE = 7.5, 1.5
WEIGHTS = ("text_encoder", "unet", "vae")
PARTS = ("scheduler", "tokenizer", *WEIGHTS)


class Pix2PixEditor:
    """One of the three as an `ImageEditor`; pictures come out with sides cut to multiples of 8.

    euler_ancestral: replaces the checkpoint's sampler. device: float16 on a GPU as published, float32 on a CPU.
    """

    def __init__(self, name: str, folder: Path, euler_ancestral: bool, steps: int, device: torch.device) -> None:
        from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

        self._pipeline = load_pipeline(
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

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Answer]:
        answers: list[Answer] = [NoPicture("the pipeline gave fewer pictures than it was asked for")] * len(images)
        for places in places_by_size(images):
            pictures = self._pipeline(
                prompt=[instructions[place] for place in places],
                image=[images[place] for place in places],
                num_inference_steps=self._steps,
                guidance_scale=GUIDANCE,
                image_guidance_scale=IMAGE_GUIDANCE,
                generator=generators(seed, places),
            ).images
            for place, picture in zip(places, pictures, strict=False):
                answers[place] = Edited(picture)
        return answers
