"""A small `transformers.Emu3VQVAE` in fp64 whose every weight matters: the plain path that folding is held against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Emu3VQVAE, Emu3VQVAEConfig


def random_temporal_vq(seed: int = 0, **sizes: Any) -> Emu3VQVAE:
    """Random convolutions, affines, biases and running statistics; codes drawn around the latents of random images."""
    config = Emu3VQVAEConfig(**{"base_channels": 32, "codebook_size": 512, "hidden_size": 128, **sizes})
    vqvae = Emu3VQVAE(config).double()
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, deviation: float) -> None:
        tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))

    with torch.no_grad():
        for module in vqvae.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                normal(module.weight, 0.0, module.weight[0].numel() ** -0.5)
                normal(module.bias, 0.0, 0.3)
            elif isinstance(module, (nn.GroupNorm, nn.BatchNorm3d)):
                normal(module.weight, 1.0, 0.3)
                normal(module.bias, 0.0, 0.3)
            if isinstance(module, nn.BatchNorm3d):
                normal(module.running_mean, 0.0, 0.5)
                normal(module.running_var, 1.0, 0.2)
                module.running_var.abs_()
        images = random_images(2, 40, 40, seed)
        latents = temporal_latents(vqvae, images).transpose(0, 1).flatten(1)
        normal(vqvae.quantize.embedding.weight, 0.0, 1.0)
        codes = vqvae.quantize.embedding.weight
        codes.mul_(latents.std(dim=1)).add_(latents.mean(dim=1))
    return vqvae


def random_images(batch: int, height: int, width: int, seed: int) -> Tensor:
    """(batch, 3, height, width) fp64, uniform in [-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


@torch.no_grad()
def temporal_latents(vqvae: Emu3VQVAE, images: Tensor) -> Tensor:
    """(B, D, h, w) that the plain path gives to its quantiser."""
    frames = images[:, None].repeat(1, vqvae.config.temporal_downsample_factor, 1, 1, 1)
    return vqvae.quant_conv(vqvae.encoder(frames).permute(0, 2, 1, 3, 4))[:, :, 0]


@torch.no_grad()
def temporal_codes(vqvae: Emu3VQVAE, images: Tensor) -> Tensor:
    """(B, h, w) codes of the plain path."""
    sizes = [tuple(images.shape[-2:])] * len(images)
    return torch.stack(vqvae.encode(images, sizes).image_tokens)
