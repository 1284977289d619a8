"""Images to code grids and back, many at a time, on one device.

Equal sizes go through together and nothing is padded: padding would change the codes, since norms and attention see
it. Encoding never runs in bf16 or TF32, whose latents fall nearest to other codes; decoding may.

Images become tensors without loss, 256 levels in [-1, 1], bit for bit as the published image processor does it (mean
and standard deviation 0.5), and back as it does, truncated to a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu3.tokenizer.images import to_rgb
from emu3.tokenizer.model import StillVQ

BATCH_PIXELS = 2**19


class ImageCodec:
    """A `StillVQ` at work on a device.

    vq: moved to `device` and kept there. batch_pixels: bound on the pixels of one batch (a larger image goes alone).
    decode_dtype: dtype of autocast while decoding; None decodes in the network's own.
    """

    def __init__(
        self,
        vq: StillVQ,
        device: torch.device | str = "cpu",
        batch_pixels: int = BATCH_PIXELS,
        decode_dtype: torch.dtype | None = None,
    ) -> None:
        self.vq = vq.to(device).eval()
        self.device = torch.device(device)
        self.batch_pixels = batch_pixels
        self.decode_dtype = decode_dtype

    @property
    def factor(self) -> int:
        """Pixels per code along an axis."""
        return self.vq.config.factor

    def encode(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """RGB images of any sizes from one cell on (`scale_image`) -> uint16 grids (h, w), in order.

        h and w are the sides in whole cells; rows and columns beyond them are seen but get no code (`StillVQ.latents`),
        as far as the network takes them: one with `patch_size` above 1 sees whole patches only.
        Raises ValueError for smaller images, and for a network in bf16.
        """
        codebook = self.vq.quantizer.codebook
        if codebook.dtype == torch.bfloat16:
            raise ValueError("a tokenizer in bf16 gives other codes; load it in float32 to encode")
        images = [_whole_patches(image, self.vq.config.patch_size) for image in images]
        grids: dict[int, np.ndarray] = {}
        for batch in self._batches([(image.height, image.width) for image in images], pixels_per_item=1):
            tensor = to_tensor([images[index] for index in batch]).to(self.device, codebook.dtype)
            with torch.autocast(self.device.type, enabled=False):
                codes = self.vq.encode(tensor).cpu().numpy().astype(np.uint16)
            grids.update(zip(batch, codes, strict=True))
        return [grids[index] for index in range(len(images))]

    def decode(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        """Integer grids (h, w) -> RGB images of h * factor rows and w * factor columns, in order.

        Raises ValueError if a code is outside the codebook.
        """
        size = self.vq.config.codebook_size
        for index, grid in enumerate(codes):
            if grid.min() < 0 or grid.max() >= size:
                raise ValueError(f"grid {index} holds codes {grid.min()}..{grid.max()}, the codebook has {size}")
        images: dict[int, Image.Image] = {}
        for batch in self._batches([grid.shape for grid in codes], pixels_per_item=self.factor**2):
            tensor = torch.from_numpy(np.stack([codes[index] for index in batch]).astype(np.int64)).to(self.device)
            with torch.autocast(self.device.type, self.decode_dtype, enabled=self.decode_dtype is not None):
                pixels = self.vq.decode(tensor)
            images.update(zip(batch, to_pil(pixels), strict=True))
        return [images[index] for index in range(len(codes))]

    def _batches(self, shapes: Sequence[tuple[int, ...]], pixels_per_item: int) -> Iterator[list[int]]:
        """Indices of items of one shape, as many as the budget allows."""
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, shape in enumerate(shapes):
            buckets.setdefault(shape, []).append(index)
        for (height, width), indices in buckets.items():
            size = max(1, self.batch_pixels // (height * width * pixels_per_item))
            for start in range(0, len(indices), size):
                yield indices[start : start + size]


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size -> float32 (B, 3, H, W) in [-1, 1]. Raises ValueError if the sizes differ."""
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"expected images of one size, got {sorted(sizes)}")
    pixels = np.stack([np.asarray(to_rgb(image)) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Float (B, 3, H, W) -> RGB images; values outside [-1, 1] are clipped, the rest truncated to a step, as the
    published image processor does in this order of operations."""
    levels = (((pixels.detach().float() + 1) / 2) * 255).clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _whole_patches(image: Image.Image, side: int) -> Image.Image:
    beyond = (image.width % side, image.height % side)
    return image.crop((0, 0, image.width - beyond[0], image.height - beyond[1])) if any(beyond) else image
