"""The vision tokenizer for still images: pixels to codes and back, as a pure 2-D network.

A published Emu3 tokenizer treats a still as four equal frames and keeps one of the four it decodes. Here nothing is
repeated: `fold` turns its temporal layers into the 2-D ones below, which gives the same codes and pixels for a
quarter of the work. The network is MoVQGAN's (Zheng et al. 2022): residual encoder, nearest code, residual decoder
whose norms are scaled and shifted by the codes. Left out: clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from emu3.errors import UserError, one_line
from emu3.files import whole_folder, write_json
from emu3.tensor_files import WEIGHTS_FILE
from emu3.tokenizer.blocks import (
    Downsample,
    LatentBlock,
    Level,
    Middle,
    Norm,
    Parts,
    Quantizer,
    StillVQConfig,
    Upsample,
    plain_float32,
    same_conv,
)
from emu3.tokenizer.fold import fold, still_stages
from emu3.tokenizer.vision_checkpoint import CONFIG_FILE, OWN_MODEL_TYPE, read_checkpoint, still_config

if TYPE_CHECKING:  # transformers takes seconds to import, and only whoever holds such a network needs it
    from transformers import Emu3VQVAE


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> latents (B, embed_dim, H // factor, W // factor)."""

    def __init__(self, config: StillVQConfig) -> None:
        super().__init__()
        widths, latent = config.level_channels, config.embed_dim
        self.patch_size = config.patch_size
        self.conv_in = same_conv(3 * config.patch_size**2, config.base_channels, config.kernel_size)
        self.levels = nn.ModuleList(
            Level(before, width, config.num_res_blocks, index in config.attn_resolutions, config, None)
            for index, (before, width) in enumerate(zip((config.base_channels, *widths), widths, strict=False))
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = Middle(widths[-1], config, None)
        self.norm_out = Norm(widths[-1], config.norm, None)
        self.conv_out = same_conv(widths[-1], latent, config.kernel_size)
        self.time_convs = nn.ModuleList(
            same_conv(latent * len(stage[0]), latent * len(stage), 3)
            for stage in still_stages(config.temporal_downsample_factor)
        )
        self.latent_blocks = nn.ModuleList(
            LatentBlock(latent, config.kernel_size) for _ in range(config.num_res_blocks)
        )
        self.quant_conv = nn.Conv2d(latent, latent, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(images, self.patch_size).contiguous(memory_format=torch.channels_last))
        for index, level in enumerate(self.levels):
            x = level(x, None)
            if index < len(self.downsamples):
                x = self.downsamples[index](x)
        x = self.conv_out(F.silu(self.norm_out(self.middle(x, None), None)))
        for conv in self.time_convs:
            x = F.silu(conv(x))
        for block in self.latent_blocks:
            x = block(x)
        return self.quant_conv(x)


class Decoder(nn.Module):
    """Looked-up codes (B, embed_dim, h, w) -> images (B, 3, h * factor, w * factor)."""

    def __init__(self, config: StillVQConfig) -> None:
        super().__init__()
        widths, latent = config.level_channels, config.embed_dim
        self.patch_size = config.patch_size
        self.post_quant_conv = nn.Conv2d(latent, latent, kernel_size=1)
        self.latent_blocks = nn.ModuleList(
            LatentBlock(latent, config.kernel_size) for _ in range(config.num_res_blocks)
        )
        self.time_convs = nn.ModuleList(same_conv(latent, latent, 3) for _ in range(config.time_stages))
        self.conv_in = same_conv(latent, widths[-1], config.kernel_size)
        self.middle = Middle(widths[-1], config, latent)
        # Coarsest level first, in the order of use.
        self.levels = nn.ModuleList(
            Level(before, width, config.num_res_blocks + 1, index in config.attn_resolutions, config, latent)
            for index, before, width in zip(
                reversed(range(len(widths))), (widths[-1], *reversed(widths)), reversed(widths), strict=False
            )
        )
        self.upsamples = nn.ModuleList(Upsample(width) for width in reversed(widths[1:]))
        self.norm_out = Norm(widths[0], config.norm, latent)
        self.conv_out = same_conv(widths[0], 3 * config.patch_size**2, config.kernel_size)

    def forward(self, codes: Tensor) -> Tensor:
        # The codes that steer the norms go through the latent layers too, beside the latents.
        both = torch.cat((self.post_quant_conv(codes), codes)).contiguous(memory_format=torch.channels_last)
        for block in self.latent_blocks:
            both = block(both)
        for conv in self.time_convs:
            both = F.silu(conv(both))
        x, codes = both.chunk(2)
        x = self.middle(self.conv_in(x), codes)
        for index, level in enumerate(self.levels):
            x = level(x, codes)
            if index < len(self.upsamples):
                x = self.upsamples[index](x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x, codes))), self.patch_size)


class Absent(nn.Module):
    """In the place of a half that was not asked for."""

    def __init__(self, part: Parts) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"this vision tokenizer has no {self.part}: load it with parts='both' or {self.part!r}")


class StillVQ(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> codes (B, H // factor, W // factor) in [0, codebook_size).

    parts: "encoder" or "decoder" leaves the other half out, and what needs it raises RuntimeError.
    """

    def __init__(self, config: StillVQConfig, parts: Parts = "both") -> None:
        if parts not in get_args(Parts):
            raise ValueError(f"parts is one of {', '.join(get_args(Parts))}, not {parts!r}")
        super().__init__()
        self.config = config
        self.parts = parts
        self.encoder: nn.Module = Absent("encoder") if parts == "decoder" else Encoder(config)
        self.quantizer = Quantizer(config.codebook_size, config.embed_dim, config.unit_codes)
        self.decoder: nn.Module = Absent("decoder") if parts == "encoder" else Decoder(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def latents(self, images: Tensor) -> Tensor:
        """What the quantizer sees, (B, embed_dim, H // factor, W // factor), differentiable.

        Rows and columns that fill no whole cell get no code, but convolutions and norms see them, as in the published
        tokenizer: cropped before, the image has other codes.

        Raises ValueError unless H and W are multiples of `config.patch_size` (1 in the published shape) and make at
        least one cell.
        """
        height, width = images.shape[-2:]
        factor, patch = self.config.factor, self.config.patch_size
        if min(height, width) < factor or height % patch or width % patch:
            raise ValueError(
                f"a {height}x{width} image (height x width) is not made of {patch}x{patch} patches, "
                f"at least {factor // patch}x{factor // patch} of them"
            )
        latents = self.encoder(images)
        return F.normalize(latents, dim=1) if self.config.unit_codes else latents

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, h * factor, w * factor) of latents (B, embed_dim, h, w) in place of codes, differentiable."""
        return self.decoder(latents)

    @torch.no_grad()
    @plain_float32()
    def encode(self, images: Tensor) -> Tensor:
        """Images, float (B, 3, H, W) in [-1, 1] -> int64 (B, H // factor, W // factor), never in TF32.

        Raises ValueError as `latents`.
        """
        return self.quantizer(self.latents(images))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Integers (B, h, w) in [0, codebook_size) -> float (B, 3, h * factor, w * factor), about [-1, 1]."""
        return self.decoder(self.quantizer.lookup(codes))

    def upsample_at_half_resolution(self, on: bool) -> Self:
        """Choose how the decoder doubles its maps; on is the default, and off the published order. Same pixels."""
        for module in self.modules():
            if isinstance(module, Upsample):
                module.at_half_resolution = on
        return self

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, both or neither. Raises ValueError unless both halves are there."""
        if self.parts != "both":
            raise ValueError(f"only a whole vision tokenizer is saved, this is its {self.parts}")
        with whole_folder(Path(folder)) as temporary:
            write_json(temporary / CONFIG_FILE, {"model_type": OWN_MODEL_TYPE, **self.config.to_dict()})
            tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
            save_file(tensors, temporary / WEIGHTS_FILE)

    @classmethod
    def from_pretrained(cls, name: Path | str, dtype: torch.dtype | None = None, parts: Parts = "both") -> Self:
        """The tokenizer in a folder or of a Hub id (`org/name`, `org/name@revision`), on the CPU.

        Reads each of the layouts in `vision_checkpoint`. dtype: None is that of the files.
        parts: only this half is read (and, from the Hub, only the files that hold the tokenizer).

        Raises UserError as `read_checkpoint`.
        """
        config, state = read_checkpoint(name, dtype, parts)
        try:
            return cls.from_state(config, state, dtype, parts)
        except RuntimeError as error:
            raise UserError(f"{name} does not hold the weights of its {CONFIG_FILE}: {one_line(error)}") from None

    @classmethod
    def from_transformers(cls, vqvae: Emu3VQVAE, parts: Parts = "both") -> Self:
        """The network with the codes and pixels of `vqvae` for stills, in its dtype.

        Raises UserError if it is one that stills do not have.
        """
        config = still_config(vqvae.config.to_dict())
        return cls.from_state(config, fold(vqvae.state_dict(), config, vqvae.dtype, parts), parts=parts)

    @classmethod
    def from_state(
        cls,
        config: StillVQConfig,
        state: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        parts: Parts = "both",
    ) -> Self:
        """A network on the CPU holding a copy of `state`, in `dtype` (None: as the codebook is).

        Raises RuntimeError if names or shapes are not those of `config` and `parts`.
        """
        with torch.device("meta"):
            model = cls(config, parts)
        codebook = state.get("quantizer.codebook")
        model.to(dtype or (torch.float32 if codebook is None else codebook.dtype)).to_empty(device="cpu")
        model.load_state_dict(state)
        return model
