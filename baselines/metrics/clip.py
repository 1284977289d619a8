"""Texts and edits in the eyes of CLIP (Radford et al., 2021, "Learning Transferable Visual Models From Natural
Language Supervision").

    clip_t            cos(image(edited), text(target caption))
    clip_instruction  cos(image(edited), text(instruction)), where a benchmark has no captions
    clip_direction    cos(image(edited) - image(source), text(target caption) - text(source caption))

All are cosines of unit embeddings, -1 to 1, higher is better. The first is called CLIP-T, or CLIP-W for the whole
picture in PIE-Bench, which prints it times 100; the second is on another scale, since an instruction describes no
picture. The last is the directional similarity of Gal et al. (2022, "StyleGAN-NADA") as InstructPix2Pix uses it; where
the edit or the captions change nothing there is no direction and no number. Texts beyond the text model's length (77
tokens) are cut. Pictures go through the model's own processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from baselines.metrics.protocol import Missing, Pictures
from baselines.metrics.weights import device, folder_digest, load_model, model_folder, version_of
from emu3.errors import UserError, one_line
from emu3.tokenizer.quantizer import plain_float32

# ViT-B/32 is what the paper compares pictures by, ViT-L/14 what PIE-Bench compares pictures and captions by. The first
# has its safetensors in a pull request.
BASE = "openai/clip-vit-base-patch32@refs/pr/15"
LARGE = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"

BATCH = 64
# Embeddings of equal pictures may differ by float32's rounding, about 1e-7 in length: the direction of that is noise.
NO_STEP = 1e-5

TextMetric = Literal["clip_t", "clip_instruction"]


class ClipEncoder:
    """Pictures and texts in CLIP's common space."""

    def __init__(self, name: str, folder: Path) -> None:
        """`folder` as `CLIPModel.save_pretrained` makes it, with processor and tokenizer; `UserError` for another one.

        name: what the version calls the model.
        """
        self._model = load_model(CLIPModel, folder)
        embeddings = self._model.text_model.embeddings
        self._length = embeddings.position_embedding.num_embeddings
        try:
            # By PIL on every machine: the default would take torchvision's resampling where that is installed.
            self._processor = CLIPImageProcessorPil.from_pretrained(folder)
            self._tokenizer = CLIPTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} lacks CLIP's processor or tokenizer: {one_line(error)}") from error
        # Without its files transformers makes an empty tokenizer, for which every text is the same.
        if len(self._tokenizer) != embeddings.token_embedding.num_embeddings:
            raise UserError(f"{folder} lacks CLIP's tokenizer: its model knows other tokens")
        digest = folder_digest(folder, ("preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt"))
        self.version = f"{version_of('transformers')}, {name} {digest}, CLIPImageProcessorPil"

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any sizes -> float32 (B, D) of unit length."""
        parts = []
        with torch.inference_mode(), plain_float32():
            for start in range(0, len(images), BATCH):
                inputs = self._processor(images=list(images[start : start + BATCH]), return_tensors="pt")
                parts.append(self._model.get_image_features(inputs["pixel_values"].to(device())).pooler_output)
            return normalize(torch.cat(parts), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 (B, D) of unit length."""
        parts = []
        with torch.inference_mode(), plain_float32():
            for start in range(0, len(texts), BATCH):
                inputs = self._tokenizer(
                    list(texts[start : start + BATCH]),
                    padding=True,
                    truncation=True,
                    max_length=self._length,
                    return_tensors="pt",
                ).to(device())
                parts.append(self._model.get_text_features(**inputs).pooler_output)
            return normalize(torch.cat(parts), dim=1)


@cache
def clip_encoder(hub_id: str, weights: Path | None) -> ClipEncoder:
    """The encoder of `BASE` or `LARGE`, loaded once. Raises `Absent` and `UserError` as `weights.model_folder`."""
    return ClipEncoder(hub_id, model_folder(hub_id, weights))


class ClipText:
    """Cosine between an edited picture and a text."""

    higher_is_better = True
    needs_target = False

    def __init__(self, name: TextMetric, encoder: ClipEncoder) -> None:
        self.name = name
        self.version = encoder.version
        self._encoder = encoder

    def score(self, rows: Sequence[Pictures]) -> list[float | Missing]:
        what = "caption of the edited picture" if self.name == "clip_t" else "instruction"
        texts = [row.target_caption if self.name == "clip_t" else row.instruction for row in rows]
        kept = {place: text for place, text in enumerate(texts) if text}
        scores: list[float | Missing] = [Missing(f"the sample has no {what}")] * len(rows)
        if kept:
            pictures = self._encoder.images([rows[place].edited for place in kept])
            cosines = (pictures * self._encoder.texts(list(kept.values()))).sum(1)
            for place, value in zip(kept, cosines.tolist(), strict=True):
                scores[place] = value
        return scores


class ClipDirection:
    """Cosine between the step from source to edited picture and the step between their captions."""

    name = "clip_direction"
    higher_is_better = True
    needs_target = False

    def __init__(self, encoder: ClipEncoder) -> None:
        self.version = encoder.version
        self._encoder = encoder

    def score(self, rows: Sequence[Pictures]) -> list[float | Missing]:
        kept = [place for place, row in enumerate(rows) if row.source_caption and row.target_caption]
        scores: list[float | Missing] = [Missing("the sample has no captions of source and edited picture")] * len(rows)
        if not kept:
            return scores
        pictures = [[getattr(rows[place], side) for place in kept] for side in ("source", "edited")]
        captions = [[getattr(rows[place], side) for place in kept] for side in ("source_caption", "target_caption")]
        seen = self._encoder.images(pictures[1]) - self._encoder.images(pictures[0])
        told = self._encoder.texts(captions[1]) - self._encoder.texts(captions[0])
        for place, image_step, text_step in zip(kept, seen, told, strict=True):
            if min(image_step.norm(), text_step.norm()) < NO_STEP:
                scores[place] = Missing("edit or captions change nothing that CLIP sees: there is no direction")
            else:
                scores[place] = cosine_similarity(image_step, text_step, dim=0).item()
        return scores
