"""Pictures to tensors and back, without loss: 256 levels in [-1, 1].

To tensors bit for bit as the published image processor does it (mean and standard deviation 0.5). Back by rounding,
where that processor truncates: that darkens a decoded picture by half a step on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> float32 (B, 3, H, W) in [-1, 1]. Raises ValueError if the sizes differ."""
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"pictures of one size are wanted, got {sorted(sizes)}")
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Float (B, 3, H, W) -> RGB pictures; values outside [-1, 1] are clipped, the rest truncated to a step, as the
    published image processor does in this order of operations."""
    levels = (((pixels.detach().float() + 1) / 2) * 255).clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]
