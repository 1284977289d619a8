"""Checks of the fast paths on this node's device, each against the plain way to the same numbers, on small networks.

In float32 the two differ by the order of sums. In bfloat16 both are off, so both are held against float32 on the same
rounded weights: no figure (the log-probabilities, the gradient of each weight, the pixels) may be farther from it than
twice what it is on the plain path. That leaves room for one more rounding and none for a wrong mask, scale or tap.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Emu3ForCausalLM, Emu3VQVAE

from emu3.errors import UserError
from emu3.mllm.grammar import GridGrammar
from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import TokenLayout
from emu3.tokenizer.blocks import plain_float32
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.random_vision import random_vqvae
from emu3.training.head import chosen_logprobs
from rl import flash
from rl.check_node.page import Facts, Node
from rl.logprobs import Batch, pack, token_logprobs
from rl.rollout.engine import Prompt, Rollout
from rl.shared_prefix import ATTENTION

LAYOUT = TokenLayout(text_ranks=300, codebook_size=512)
SIDE, GROUP = 6, 4
HEAD_TOKENS, HEAD_WIDTH, CODES = 128, 64, 32_768
BOUND = {"fp32": 1e-4, "bf16": 2.0}
"""fp32: distance to the plain path, relative to the size of the figure. bf16: distance to float32, in units of the
plain path's."""
TINIEST = 1e-3
"""In bf16 both paths may be this far from float32, relatively, whatever their ratio."""

Way = Callable[[], list[Tensor]]
"""Computes the figures that are compared."""


def fast_paths(node: Node, precision: str) -> tuple[str, Facts]:
    """Shared prompts, the head in chunks, the folded image tokenizer. precision: "fp32" or "bf16"."""
    device = torch.device("cuda" if node.gpus else "cpu")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    ways = {"attention": attention, "head": head, "tokenizer": tokenizer}
    facts: Facts = {"device": device.type}
    wrong = []
    for name, make in ways.items():
        with plain_float32():
            fast, plain, exact = make(device, dtype)
            gaps, plain_gaps = _gaps(fast, exact), _gaps(plain, exact)
        facts[name] = max(gaps)
        if dtype == torch.bfloat16:
            facts[f"{name}_plain"] = max(plain_gaps)
            holds = [gap <= max(TINIEST, BOUND["bf16"] * other) for gap, other in zip(gaps, plain_gaps, strict=True)]
        else:
            holds = [gap <= BOUND["fp32"] for gap in gaps]
        if not all(holds):
            wrong.append(name)
    facts["flash"] = flash.available(torch.empty(1, 8, dtype=dtype, device=device))
    told = ", ".join(
        f"{name} {facts[name]:.1e}" + (f" (plain {facts[f'{name}_plain']:.1e})" if dtype == torch.bfloat16 else "")
        for name in ways
    )
    from_what = "float32" if dtype == torch.bfloat16 else "the plain path"
    if wrong:
        raise UserError(
            f"{' and '.join(wrong)} on {device.type} in {precision} differ from {from_what}: {told}; a kernel of "
            "this torch computes something else here: report it with node.json"
        )
    return f"on {device.type}, relative distance from {from_what}: {told}", facts


def _gaps(way: Way, exact: Way) -> list[float]:
    """The relative distance of each figure, in the mean square. NaN is larger than anything."""
    gaps = [
        ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
        for ours, theirs in zip(way(), exact(), strict=True)
    ]
    return [gap if np.isfinite(gap) else float("inf") for gap in gaps]


def attention(device: torch.device, dtype: torch.dtype) -> tuple[Way, Way, Way]:
    """Log-probabilities of two groups' answers and the gradients of all weights: each prompt once, by torch's flash
    kernels; with a mask over the whole row; and that in float32."""
    model = new_language_model(
        LAYOUT, hidden_size=128, layers=2, heads=4, kv_heads=2, ffn_size=256, max_positions=256, seed=0
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # and no buffer: rotary frequencies stay in float32
    exact = copy.deepcopy(model).float().to(device)  # type: ignore[arg-type]  # a wrapped stub
    model.to(device)  # type: ignore[arg-type]
    batch = pack(_rows(), "grammar", 0, device)

    def figures(model: Emu3ForCausalLM, implementation: str) -> Way:
        return lambda: _figures(model, implementation, batch, dtype if model is not exact else torch.float32)

    return figures(model, ATTENTION), figures(model, "sdpa"), figures(exact, "sdpa")


def _figures(model: Emu3ForCausalLM, implementation: str, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    model.set_attn_implementation(implementation)
    model.zero_grad()
    with torch.autocast(batch.ids_T.device.type, dtype, enabled=dtype == torch.bfloat16):
        logprobs_N, _ = token_logprobs(model, batch, 1.0)
    logprobs_N.sum().backward()
    return [logprobs_N.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def _rows() -> list[tuple[Prompt, Rollout]]:
    rng = np.random.default_rng(0)
    rows = []
    for number, length in enumerate((40, 56)):
        grammar = GridGrammar(LAYOUT, SIDE, SIDE + number, size_ids=(1, 2, 3))
        ids = tuple(rng.integers(0, LAYOUT.text_ranks, length).tolist())
        prompt = Prompt(str(number), ids, grammar, np.zeros((SIDE, SIDE), np.uint16), "", None)
        for _ in range(GROUP):
            grid = rng.integers(0, LAYOUT.codebook_size, (SIDE, SIDE + number))
            tokens = [LAYOUT.boi, *grammar.completion(grid.tolist())]
            rows.append((prompt, Rollout(tokens, np.zeros(len(tokens), np.float32), grid.astype(np.uint16), None)))
    return rows


def head(device: torch.device, dtype: torch.dtype) -> tuple[Way, Way, Way]:
    """Log-probabilities among all codes, and their gradients: a chunk of tokens at a time, all at once, in float32."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(HEAD_TOKENS, HEAD_WIDTH, generator=generator).to(device, dtype)
    weight = torch.randn(CODES, HEAD_WIDTH, generator=generator).to(device, dtype)
    target = torch.randint(CODES, (HEAD_TOKENS,), generator=generator).to(device)

    def chunked(hidden: Tensor, weight: Tensor) -> Tensor:
        return chosen_logprobs(hidden, weight, target, 1.0, chunk_bytes=4 * CODES * HEAD_TOKENS // 4)[0]

    def full(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear(hidden, weight).float().log_softmax(-1).gather(-1, target[:, None])[:, 0]

    def figures(score: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> Way:
        def compute() -> list[Tensor]:
            inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, weight)]
            logprobs = score(*inputs)
            return [logprobs.detach(), *torch.autograd.grad(logprobs.sum(), inputs)]

        return compute

    return figures(chunked, dtype), figures(full, dtype), figures(full, torch.float32)


def tokenizer(device: torch.device, dtype: torch.dtype) -> tuple[Way, Way, Way]:
    """Latents and pixels of the folded image tokenizer, of transformers' own, and of that in float32. Encoding is in
    float32 always; in bfloat16 the decoders are compared."""
    vqvae = random_vqvae(base_channels=32, codebook_size=512, hidden_size=128)
    still = StillVQ.from_transformers(vqvae).to(device).eval()
    vqvae.to(device)  # type: ignore[arg-type]
    images = (torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
    codes = still.encode(images)

    def ours() -> list[Tensor]:
        decoded = _in(dtype, device, lambda: still.decode(codes))
        return [decoded] if dtype == torch.bfloat16 else [still.latents(images), decoded]

    def plain(dtype: torch.dtype, latents: bool) -> list[Tensor]:
        decoded = _in(dtype, device, lambda: vqvae.decode(codes))
        return [_latents(vqvae, images), decoded] if latents else [decoded]

    latents = dtype == torch.float32
    return tuple(  # type: ignore[return-value]
        torch.no_grad()(way) for way in (ours, lambda: plain(dtype, latents), lambda: plain(torch.float32, latents))
    )


def _latents(vqvae: Emu3VQVAE, images: Tensor) -> Tensor:
    frames = images[:, None].repeat(1, vqvae.config.temporal_downsample_factor, 1, 1, 1)
    encoded: Tensor = vqvae.quant_conv(vqvae.encoder(frames).permute(0, 2, 1, 3, 4))
    return encoded[:, :, 0]


def _in(dtype: torch.dtype, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return compute().float()
