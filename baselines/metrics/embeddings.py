"""Cosines of unit embeddings, -1 to 1, higher is better: images with images, images with texts, edits with edits.

    clip_i            cos(image(edited), image(target)) of CLIP's projected embeddings
    dino              the same of DINOv2's class tokens after its last norm
    clip_t            cos(image(edited), text(target caption))
    clip_instruction  cos(image(edited), text(instruction)), where a benchmark has no captions
    clip_direction    cos(image(edited) - image(source), text(target caption) - text(source caption))

CLIP is of Radford et al. (2021, "Learning Transferable Visual Models From Natural Language Supervision"), DINOv2 of
Oquab et al. (2024, "DINOv2: Learning Robust Visual Features without Supervision"). `clip_i` is "CLIP-I" in Ruiz et al.
(2023). Published tables with a column "DINO" mostly have the first DINO's ViT-S/16: their numbers are not comparable
with `dino`. `clip_t` is called CLIP-T, or CLIP-W for the whole image in PIE-Bench, which prints it times 100;
`clip_instruction` is on another scale, since an instruction describes no image. `clip_direction` is the directional
similarity of Gal et al. (2022, "StyleGAN-NADA") as InstructPix2Pix uses it; where the edit or the captions change
nothing there is no direction and no number.

Each image goes through the model's own processor by itself (its shortest side scaled, the middle square taken), so
sizes need not agree; what lies outside the middle square of a wide image is not seen. Texts beyond the text model's
length (77 tokens) are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, Dinov2Model

from baselines.metrics.image_metric import Against, EditedSample, Missing, over_known, reference_of
from baselines.metrics.metric_weights import device, folder_digest, load_model, model_folder, version_of
from emu3.errors import UserError, one_line
from emu3.tokenizer.blocks import plain_float32

# ViT-B/32 is what the paper compares images by, ViT-L/14 what PIE-Bench compares images and captions by. The first
# has its safetensors in a pull request.
CLIP_BASE = "openai/clip-vit-base-patch32@refs/pr/15"
CLIP_LARGE = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
DINOV2 = "facebook/dinov2-base@f9e44c814b77203eaa57a6bdbbd535f21ede1415"

BATCH = 64
# Embeddings of equal images may differ by float32's rounding, about 1e-7 in length: the direction of that is noise.
NO_STEP = 1e-5

TextMetric = Literal["clip_t", "clip_instruction"]


def _embed(items: Sequence[Any], embed: Callable[[list[Any]], Tensor]) -> Tensor:
    """`embed` in batches: n items -> float32 (n, D) of unit length."""
    with torch.inference_mode(), plain_float32():
        parts = [embed(list(items[start : start + BATCH])) for start in range(0, len(items), BATCH)]
        return normalize(torch.cat(parts), dim=1)


class ImageEmbedder(Protocol):
    """Something that embeds images; `version` names weights and preprocessing."""

    @property
    def version(self) -> str: ...

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images of any sizes -> float32 (B, D) of unit length."""
        ...


class ClipEncoder:
    """Images and texts in CLIP's common space."""

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
        """RGB images of any sizes -> float32 (B, D) of unit length."""

        def embed(batch: list[Image.Image]) -> Tensor:
            inputs = self._processor(images=batch, return_tensors="pt")
            return self._model.get_image_features(inputs["pixel_values"].to(device())).pooler_output

        return _embed(images, embed)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 (B, D) of unit length."""

        def embed(batch: list[str]) -> Tensor:
            options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": self._length}
            inputs = self._tokenizer(batch, return_tensors="pt", **options).to(device())
            return self._model.get_text_features(**inputs).pooler_output

        return _embed(texts, embed)


class DinoEncoder:
    """Images as DINOv2 sees them."""

    def __init__(self, name: str, folder: Path) -> None:
        """`folder` as `Dinov2Model.save_pretrained` makes it, with its processor; `UserError` for another one.

        name: what the version calls the model.
        """
        self._model = load_model(Dinov2Model, folder)
        try:
            self._processor = BitImageProcessorPil.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} lacks DINOv2's processor: {one_line(error)}") from error
        digest = folder_digest(folder, ("preprocessor_config.json",))
        self.version = f"{version_of('transformers')}, {name} {digest}, BitImageProcessorPil"

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images of any sizes -> float32 (B, D) of unit length."""

        def embed(batch: list[Image.Image]) -> Tensor:
            inputs = self._processor(images=batch, return_tensors="pt")
            return self._model(inputs["pixel_values"].to(device())).last_hidden_state[:, 0]

        return _embed(images, embed)


@cache
def clip_encoder(hub_id: str, weights: Path | None) -> ClipEncoder:
    """That of `CLIP_BASE` or `CLIP_LARGE`, loaded once. Raises as `model_folder`."""
    return ClipEncoder(hub_id, model_folder(hub_id, weights))


@cache
def dino_encoder(weights: Path | None) -> DinoEncoder:
    """The encoder of `DINOV2`, loaded once. Raises `MissingDependency` and `UserError` as `model_folder`."""
    return DinoEncoder(DINOV2, model_folder(DINOV2, weights))


class ImageSimilarity:
    """Cosine between an edited image and what it is compared with. `name` ends in `_source` for the source."""

    higher_is_better = True

    def __init__(self, name: str, against: Against, encoder: ImageEmbedder) -> None:
        self.name = name if against == "target" else f"{name}_source"
        self.needs_target = against == "target"
        self.version = encoder.version
        self._against = against
        self._encoder = encoder

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        pairs: list[tuple[Image.Image, Image.Image] | Missing] = []
        for row in rows:
            reference = reference_of(row, self._against)
            pairs.append(reference if isinstance(reference, Missing) else (row.edited, reference))
        return over_known(pairs, self._cosines)

    def _cosines(self, pairs: list[tuple[Image.Image, Image.Image]]) -> list[float]:
        edited, reference = (self._encoder.images([pair[side] for pair in pairs]) for side in (0, 1))
        return (edited * reference).sum(1).tolist()


class ClipText:
    """Cosine between an edited image and a text."""

    higher_is_better = True
    needs_target = False

    def __init__(self, name: TextMetric, encoder: ClipEncoder) -> None:
        self.name = name
        self.version = encoder.version
        self._encoder = encoder

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        what = "caption of the edited image" if self.name == "clip_t" else "instruction"
        texts = [row.target_caption if self.name == "clip_t" else row.instruction for row in rows]
        pairs = zip(rows, texts, strict=True)
        return over_known(
            [(row.edited, text) if text else Missing(f"the sample has no {what}") for row, text in pairs], self._cosines
        )

    def _cosines(self, pairs: list[tuple[Image.Image, str]]) -> list[float]:
        images, texts = zip(*pairs, strict=True)
        return (self._encoder.images(images) * self._encoder.texts(texts)).sum(1).tolist()


class ClipDirection:
    """Cosine between the step from source to edited image and the step between their captions."""

    name = "clip_direction"
    higher_is_better = True
    needs_target = False

    def __init__(self, encoder: ClipEncoder) -> None:
        self.version = encoder.version
        self._encoder = encoder

    def score(self, rows: Sequence[EditedSample]) -> list[float | Missing]:
        absent = Missing("the sample has no captions of source and edited image")
        return over_known([row if row.source_caption and row.target_caption else absent for row in rows], self._cosines)

    def _cosines(self, rows: list[EditedSample]) -> list[float | Missing]:
        def step(embed: Callable[[list[Any]], Tensor], before: str, after: str) -> Tensor:
            return embed([getattr(row, after) for row in rows]) - embed([getattr(row, before) for row in rows])

        seen = step(self._encoder.images, "source", "edited")
        described = step(self._encoder.texts, "source_caption", "target_caption")
        still = Missing("edit or captions change nothing that CLIP sees: there is no direction")
        return [
            still if min(one.norm(), other.norm()) < NO_STEP else cosine_similarity(one, other, dim=0).item()
            for one, other in zip(seen, described, strict=True)
        ]
