"""From the published temporal tokenizer to the still one: the same function of one image, as 2-D weights.

A still is F equal frames to the encoder, and the decoder's frame 0 is the image. GroupNorm, attention and the 2-D
convolutions see single frames, and batch norm is affine, so only the causal temporal convolutions remain to be folded:
- with one frame in time, or for frame 0 of the decoder, all taps but the last see padding: the last tap is the 2-D
  kernel;
- each temporal downsampling becomes one 2-D convolution between its distinct frames (`still_stages`), whose kernels
  are sums of taps.
A batch norm that follows a convolution is folded into it, and the affine of a spatial norm into its two 1x1
convolutions. All of it is exact; it is computed in fp64 and rounded once.

Names are those of `transformers.Emu3VQVAE`; `vision_checkpoint` says how other checkpoints spell them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from emu3.errors import UserError
from emu3.tokenizer.blocks import Parts, StillVQConfig

BATCH_NORM_EPSILON = 1e-5
CODEBOOK = "quantize.embedding.weight"
HALVES = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}
"""What the names of a half's tensors begin with; the codebook belongs to both."""

PAD_FRAMES = 2
DOWN_TAPS = 4
DOWN_STRIDE = 2

Frame = tuple[tuple[int, ...], ...]
"""Of one distinct output frame: for each distinct input frame, the taps that see it."""


def fold(
    state: Mapping[str, Tensor],
    config: StillVQConfig,
    dtype: torch.dtype = torch.float32,
    parts: Parts = "both",
    spelling: Callable[[str], str] = str,
) -> dict[str, Tensor]:
    """State dict of `StillVQ(config, parts)`, in `dtype`, from that of the temporal network it folds.

    `state` is asked once for each tensor of `parts` and for no other. spelling: from a name of
    `transformers.Emu3VQVAE` to the one it has in `state`. Raises UserError if a tensor is missing or left over.
    """
    absent = tuple(start for half, starts in HALVES.items() if parts not in ("both", half) for start in starts)
    folding = _Folding(state, dtype, absent, spelling)
    if parts != "decoder":
        _fold_encoder(folding, config)
    if parts != "encoder":
        _fold_decoder(folding, config)
    folding.put("quantizer.codebook", folding.take(CODEBOOK))
    return folding.result()


def still_stages(frames: int) -> list[list[Frame]]:
    """What one image, shown as all frames of a clip, leaves of each temporal halving: its distinct output frames, in
    order of appearance. Plain integer bookkeeping.

    The published encoder repeats a still F times (F = temporal_downsample_factor) and halves time with causal
    convolutions of 4 taps, stride 2, after two zero frames. Equal frames stay equal wherever the padding is not seen,
    so each stage has only a few distinct output frames, and each is a sum of tap-weighted distinct input frames: for
    F = 4, two distinct frames after the first stage and one after the second.
    """
    clip = [0] * frames
    stages: list[list[Frame]] = []
    while len(clip) > 1:
        distinct_inputs = max(clip) + 1
        padded: list[int | None] = [None] * PAD_FRAMES + clip
        outputs: list[Frame] = []
        for start in range(0, len(padded) - DOWN_TAPS + 1, DOWN_STRIDE):
            window = padded[start : start + DOWN_TAPS]
            outputs.append(
                tuple(tuple(tap for tap, seen in enumerate(window) if seen == i) for i in range(distinct_inputs))
            )
        distinct = list(dict.fromkeys(outputs))
        clip = [distinct.index(output) for output in outputs]
        stages.append(distinct)
    return stages


class _Folding:
    """Takes tensors from the source in fp64 and puts folded ones in `dtype`; each kind of layer is a method."""

    def __init__(
        self, source: Mapping[str, Tensor], dtype: torch.dtype, absent: tuple[str, ...], spelling: Callable[[str], str]
    ) -> None:
        self._source = source
        self._spelling = spelling
        self._left = {
            name for name in source if not name.startswith(absent) and not name.endswith(".num_batches_tracked")
        }
        self._dtype = dtype
        self._out: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        spelled = self._spelling(name)
        if spelled not in self._left:
            raise UserError(f"the vision tokenizer's weights lack {spelled!r}")
        self._left.remove(spelled)
        return self._source[spelled].detach().double()

    def put(self, name: str, tensor: Tensor) -> None:
        self._out[name] = tensor.to(self._dtype)

    def result(self) -> dict[str, Tensor]:
        if self._left:
            raise UserError(f"the vision tokenizer's weights hold {len(self._left)} unknown ones: {min(self._left)!r}")
        return self._out

    def copy(self, old: str, new: str) -> None:
        """A layer that stays as it is."""
        for part in ("weight", "bias"):
            self.put(f"{new}.{part}", self.take(f"{old}.{part}"))

    def norm(self, old: str, new: str, spatial: bool) -> None:
        if not spatial:
            self.copy(old, new)
            return
        weight, bias = self.take(f"{old}.norm_layer.weight"), self.take(f"{old}.norm_layer.bias")
        scale, scale_bias = self.take(f"{old}.conv_y.weight"), self.take(f"{old}.conv_y.bias")
        shift, shift_bias = self.take(f"{old}.conv_b.weight"), self.take(f"{old}.conv_b.bias")
        kernel = torch.cat((scale * weight[:, None, None, None], shift + scale * bias[:, None, None, None]))
        self.put(f"{new}.modulation.weight", kernel)
        self.put(f"{new}.modulation.bias", torch.cat((scale_bias * weight, shift_bias + scale_bias * bias)))

    def res_block(self, old: str, new: str, spatial: bool, widened: bool) -> None:
        for index in (1, 2):
            self.norm(f"{old}.norm{index}", f"{new}.norm{index}", spatial)
            self.copy(f"{old}.conv{index}", f"{new}.conv{index}")
        if widened:
            self.copy(f"{old}.nin_shortcut", f"{new}.shortcut")

    def attention(self, old: str, old_norm: str, new: str, spatial: bool) -> None:
        self.norm(old_norm, f"{new}.norm", spatial)
        # Matrices in transformers' layout, 1x1 convolutions in the other.
        self.put(f"{new}.qkv.weight", torch.cat([self.take(f"{old}.{name}_proj.weight").flatten(1) for name in "qkv"]))
        self.put(f"{new}.qkv.bias", torch.cat([self.take(f"{old}.{name}_proj.bias") for name in "qkv"]))
        self.put(f"{new}.out.weight", self.take(f"{old}.out_proj.weight").flatten(1))
        self.put(f"{new}.out.bias", self.take(f"{old}.out_proj.bias"))

    def middle(self, old: str, new: str, spatial: bool) -> None:
        self.res_block(f"{old}.block_1", f"{new}.block1", spatial, widened=False)
        self.attention(f"{old}.attn_1", f"{old}.attn_norm", f"{new}.attention", spatial)
        self.res_block(f"{old}.block_2", f"{new}.block2", spatial, widened=False)

    def last_tap(self, old: str, new: str) -> None:
        """A causal convolution whose earlier taps see only padding."""
        self.put(f"{new}.weight", self.take(f"{old}.conv.weight")[:, :, -1])
        self.put(f"{new}.bias", self.take(f"{old}.conv.bias"))

    def latent_block(self, old: str, new: str) -> None:
        scale, shift = self._batch_norm(f"{old}.norm1")
        self.put(f"{new}.scale", scale[:, None, None])
        self.put(f"{new}.shift", shift[:, None, None])
        scale, shift = self._batch_norm(f"{old}.norm2")
        kernel, bias = self.take(f"{old}.conv1.conv.weight")[:, :, -1], self.take(f"{old}.conv1.conv.bias")
        self.put(f"{new}.conv1.weight", kernel * scale[:, None, None, None])
        self.put(f"{new}.conv1.bias", bias * scale + shift)
        self.last_tap(f"{old}.conv2", f"{new}.conv2")

    def _batch_norm(self, old: str) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,) of a batch norm in evaluation."""
        deviation = (self.take(f"{old}.running_var") + BATCH_NORM_EPSILON).sqrt()
        scale = self.take(f"{old}.weight") / deviation
        return scale, self.take(f"{old}.bias") - scale * self.take(f"{old}.running_mean")


def _fold_encoder(folding: _Folding, config: StillVQConfig) -> None:
    folding.copy("encoder.conv_in", "encoder.conv_in")
    width_before = config.base_channels
    for level, width in enumerate(config.level_channels):
        old, new = f"encoder.down_block.down.{level}", f"encoder.levels.{level}"
        for index in range(config.num_res_blocks):
            folding.res_block(f"{old}.block.{index}", f"{new}.blocks.{index}", False, widened=width != width_before)
            width_before = width
            if level in config.attn_resolutions:
                attention = f"{new}.attentions.{index}"
                folding.attention(f"{old}.attn.{index}", f"{old}.attn_norms.{index}", attention, False)
        if level < len(config.level_channels) - 1:
            folding.copy(f"{old}.downsample.conv", f"encoder.downsamples.{level}.conv")
    folding.middle("encoder.middle_block", "encoder.middle", spatial=False)
    folding.norm("encoder.norm_out", "encoder.norm_out", spatial=False)
    folding.copy("encoder.conv_out", "encoder.conv_out")
    for stage, frames in enumerate(still_stages(config.temporal_downsample_factor)):
        old, new = f"encoder.time_conv.{stage}.conv.conv", f"encoder.time_convs.{stage}"
        taps = folding.take(f"{old}.weight")
        # Rows: distinct output frames; columns: distinct input frames; each kernel a sum of taps, perhaps of none.
        rows = [torch.cat([taps[:, :, list(seen)].sum(dim=2) for seen in frame], dim=1) for frame in frames]
        folding.put(f"{new}.weight", torch.cat(rows))
        folding.put(f"{new}.bias", folding.take(f"{old}.bias").repeat(len(frames)))
    for index in range(config.num_res_blocks):
        folding.latent_block(f"encoder.time_res_stack.{index}", f"encoder.latent_blocks.{index}")
    folding.last_tap("quant_conv", "encoder.quant_conv")


def _fold_decoder(folding: _Folding, config: StillVQConfig) -> None:
    folding.last_tap("post_quant_conv", "decoder.post_quant_conv")
    for index in range(config.num_res_blocks):
        folding.latent_block(f"decoder.time_res_stack.{index}", f"decoder.latent_blocks.{index}")
    for stage in range(config.time_stages):
        folding.last_tap(f"decoder.time_conv.{stage}.conv", f"decoder.time_convs.{stage}")
    folding.copy("decoder.conv_in", "decoder.conv_in")
    folding.middle("decoder.middle_block", "decoder.middle", spatial=True)
    width_before = config.level_channels[-1]
    for place, level in enumerate(reversed(range(len(config.level_channels)))):
        width = config.level_channels[level]
        old, new = f"decoder.up_block.up.{level}", f"decoder.levels.{place}"
        for index in range(config.num_res_blocks + 1):
            folding.res_block(f"{old}.block.{index}", f"{new}.blocks.{index}", True, widened=width != width_before)
            width_before = width
            if level in config.attn_resolutions:
                attention = f"{new}.attentions.{index}"
                folding.attention(f"{old}.attn.{index}", f"{old}.attn_norms.{index}", attention, True)
        if level > 0:
            folding.copy(f"{old}.upsample.conv", f"decoder.upsamples.{place}.conv")
    folding.norm("decoder.norm_out", "decoder.norm_out", spatial=True)
    folding.copy("decoder.conv_out", "decoder.conv_out")
