"""The vision tokenizer at its real size against `transformers.Emu3VQVAE`, which does BAAI's work in BAAI's way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from dev.speed.measure import Speed, seconds
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.random_vision import random_vqvae

SIDE = 256
PEER = f"transformers.Emu3VQVAE, one {SIDE}x{SIDE} image"
QUANTIZER_ROWS = 4096

# Peak of a process that does nothing but one search; the codebook is in both.
_QUANTIZER = """
import sys, torch
from transformers import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAEVectorQuantizer
from dev.speed.measure import added_memory
from emu3.tokenizer.blocks import nearest_codes
torch.manual_seed(0)
quantizer = Emu3VQVAEVectorQuantizer(Emu3VQVAEConfig())
rows = int(sys.argv[2])
latents = torch.randn(1, 1, 4, 64, rows // 64)
flat = latents.permute(0, 1, 3, 4, 2).reshape(-1, 4)
work = {"ours": lambda n: nearest_codes(flat[:n], quantizer.embedding.weight), "peer": lambda n: quantizer(latents)}
with torch.no_grad(): print(added_memory(lambda: work[sys.argv[1]](rows)))
"""


def times(turns: int) -> list[Speed]:
    """Seconds to encode and to decode one image in float32."""
    peer = random_vqvae()
    ours = StillVQ.from_transformers(peer)
    images = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    sizes = torch.tensor([[SIDE, SIDE]])
    with torch.no_grad():
        codes = ours.encode(images)
        encode = seconds(lambda: ours.encode(images), lambda: peer.encode(images, sizes), turns)
        decode = seconds(lambda: ours.decode(codes), lambda: peer.decode(codes), turns)
    return [
        Speed("vq_encode", *encode, "s", 3.5, PEER),
        Speed("vq_decode", *decode, "s", 4.0, PEER),
    ]


def operations() -> list[Speed]:
    """Floating-point operations of the same, counted on the meta device; the search for the nearest code left out."""
    with torch.device("meta"):
        ours, peer = StillVQ(StillVQConfig()).eval(), Emu3VQVAE(Emu3VQVAEConfig()).eval()
        image, codes = torch.rand(1, 3, SIDE, SIDE), torch.zeros(1, SIDE // 8, SIDE // 8, dtype=torch.long)
    clip = image[:, None].repeat(1, peer.config.temporal_downsample_factor, 1, 1, 1)
    return [
        Speed(
            "vq_encode_flops",
            _gigaflops(lambda: ours.latents(image)),
            _gigaflops(lambda: peer.quant_conv(peer.encoder(clip).permute(0, 2, 1, 3, 4))),
            "GFLOP",
            3.9,
            PEER,
        ),
        Speed(
            "vq_decode_flops",
            _gigaflops(lambda: ours.decode(codes)),
            _gigaflops(lambda: peer.decode(codes)),
            "GFLOP",
            4.5,
            PEER,
        ),
    ]


def quantizer_memory() -> list[Speed]:
    """Memory that a search of the codebook adds to its process."""

    def peak(who: str) -> float:
        command = [sys.executable, "-c", _QUANTIZER, who, str(QUANTIZER_ROWS)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    peer_is = f"transformers' quantizer, {QUANTIZER_ROWS} latents, 32,768 codes"
    return [Speed("quantizer_memory", peak("ours"), peak("peer"), "MB", 5.0, peer_is)]


def _gigaflops(work: Callable[[], Tensor]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9
