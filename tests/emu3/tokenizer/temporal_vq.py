"""A small `transformers.Emu3VQVAE` in fp64: the plain path that folding is held against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Emu3VQVAE

from emu3.tokenizer.random_vision import random_vqvae

SMALL = {"base_channels": 32, "codebook_size": 512, "hidden_size": 128}


def random_temporal_vq(seed: int = 0, **sizes: Any) -> Emu3VQVAE:
    """The published topology at an eighth of its width, whose every weight matters."""
    return random_vqvae(seed, torch.float64, **{**SMALL, **sizes})


def random_images(batch: int, height: int, width: int, seed: int) -> Tensor:
    """(batch, 3, height, width) fp64, uniform in [-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


@torch.no_grad()
def temporal_latents(vqvae: Emu3VQVAE, images: Tensor) -> Tensor:
    """(B, D, h, w) that the plain path gives to its quantizer."""
    frames = images[:, None].repeat(1, vqvae.config.temporal_downsample_factor, 1, 1, 1)
    return vqvae.quant_conv(vqvae.encoder(frames).permute(0, 2, 1, 3, 4))[:, :, 0]


@torch.no_grad()
def temporal_codes(vqvae: Emu3VQVAE, images: Tensor) -> Tensor:
    """(B, h, w) codes of the plain path."""
    sizes = [tuple(images.shape[-2:])] * len(images)
    return torch.stack(vqvae.encode(images, sizes).image_tokens)
