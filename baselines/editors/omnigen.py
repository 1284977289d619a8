"""OmniGen (Xiao et al., 2024) through diffusers, as the published evaluation ran it.

Every source is resized to 512x512 whatever its shape, with guidance 2 for the text and 1.6 for the picture; the
number of steps is the pipeline's default. Here the picture is brought back to the shape of its source, so that a judge
compares like with like; the published evaluation showed a square. It drew the noise of each batch from seed 222.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from baselines.editors.diffusers_parts import generators, load_pipeline
from baselines.editors.protocol import Answer, Edited

MODEL = "Shitao/OmniGen-v1-diffusers"
SIDE = 512
STEPS = 50
GUIDANCE, IMAGE_GUIDANCE = 2.0, 1.6
WEIGHTS = ("transformer", "vae")
PARTS = ("scheduler", "tokenizer", *WEIGHTS)


class OmniGenEditor:
    """OmniGen as an `ImageEditor`; pictures come out at the size of their sources.

    device: bfloat16 on a GPU as published, float32 on a CPU.
    """

    def __init__(self, name: str, folder: Path, steps: int, device: torch.device) -> None:
        from diffusers import OmniGenPipeline

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._pipeline = load_pipeline(OmniGenPipeline, name, folder, dtype)
        self._pipeline.to(device)
        self._steps = steps

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> list[Answer]:
        pictures = self._pipeline(
            prompt=[f"<img><|image_1|></img> {instruction}" for instruction in instructions],
            input_images=[[image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)] for image in images],
            num_inference_steps=self._steps,
            guidance_scale=GUIDANCE,
            img_guidance_scale=IMAGE_GUIDANCE,
            use_input_image_size_as_output=True,
            generator=generators(seed, range(len(images))),
        ).images
        return [
            Edited(picture.resize(image.size, Image.Resampling.BICUBIC))
            for picture, image in zip(pictures, images, strict=False)
        ]
