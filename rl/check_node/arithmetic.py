"""Checks of the fast paths on this node's device, each against the plain way to the same numbers, on small networks.

In float32 the two differ by the order of sums. In bfloat16 both are off, so both are held against float32 on the same
rounded weights: no number (the log-probabilities, the gradient of each weight, the pixels) may be farther from it than
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
from emu3.mllm.head import chosen_logprobs
from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import GridGrammar, TokenLayout
from emu3.tokenizer.blocks import plain_float32
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.random_vision import random_vqvae
from rl.check_node.check import Facts, Node
from rl.logprobs import Batch, pack, token_logprobs
from rl.rollout.engine import Prompt, Rollout
from rl.shared_prefix import ATTENTION, flash_available

LAYOUT = TokenLayout(text_ranks=300, codebook_size=512)
SIDE, GROUP = 6, 4
HEAD_TOKENS, HEAD_WIDTH, CODES = 128, 64, 32_768
BOUND = {"fp32": 1e-4, "bf16": 2.0}
"""fp32: distance to the plain path, relative to the size of the number. bf16: distance to float32, in units of the
plain path's."""
TINIEST = 1e-3
"""In bf16 both paths may be this far from float32, relatively, whatever their ratio."""

Way = Callable[[], list[Tensor]]
"""Computes the numbers that are compared."""


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
    facts["flash"] = flash_available(torch.empty(1, 8, dtype=dtype, device=device))
    distances = ", ".join(
        f"{name} {facts[name]:.1e}" + (f" (plain {facts[f'{name}_plain']:.1e})" if dtype == torch.bfloat16 else "")
        for name in ways
    )
    from_what = "float32" if dtype == torch.bfloat16 else "the plain path"
    if wrong:
        raise UserError(
            f"{' and '.join(wrong)} on {device.type} in {precision} differ from {from_what}: {distances}; a kernel of "
            "this torch computes something else here: report it with node.json"
        )
    return f"on {device.type}, relative distance from {from_what}: {distances}", facts


def _gaps(way: Way, exact: Way) -> list[float]:
    """The relative distance of each number, in the mean square. NaN is larger than anything."""
    gaps = [
        ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
        for ours, theirs in zip(way(), exact(), strict=True)
    ]
    return [gap if np.isfinite(gap) else float("inf") for gap in gaps]


def attention(device: torch.device, dtype: torch.dtype) -> tuple[Way, Way, Way]:
    """Log-probabilities of two groups' completions and the gradients of all weights: each prompt once, by torch's flash
    kernels; with a mask over the whole row; and that in float32."""
    model = new_language_model(
        LAYOUT, hidden_size=128, layers=2, heads=4, kv_heads=2, ffn_size=256, max_positions=256, seed=0
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # and no buffer: rotary frequencies stay in float32
    exact = copy.deepcopy(model).float().to(device)  # type: ignore[arg-type]  # a wrapped stub
    model.to(device)  # type: ignore[arg-type]
    batch = pack(_rows(), "grammar", 0, device)

    def numbers(model: Emu3ForCausalLM, implementation: str) -> Way:
        return lambda: _numbers(model, implementation, batch, dtype if model is not exact else torch.float32)

    return numbers(model, ATTENTION), numbers(model, "sdpa"), numbers(exact, "sdpa")


def _numbers(model: Emu3ForCausalLM, implementation: str, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    model.set_attn_implementation(implementation)
    model.zero_grad()
    with torch.autocast(batch.ids_T.device.type, dtype, enabled=dtype == torch.bfloat16):
        logprobs_N, _ = token_logprobs(model, batch, 1.0)
    logprobs_N.sum().backward()
    return [logprobs_N.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def _rows() -> list[tuple[Prompt, Rollout]]:
    """Two groups, of other prompt lengths and widths."""
    rng = np.random.default_rng(0)
    return random_group(rng, LAYOUT, SIDE, SIDE, 40, GROUP) + random_group(rng, LAYOUT, SIDE, SIDE + 1, 56, GROUP)


def random_group(
    rng: np.random.Generator, layout: TokenLayout, height: int, width: int, prompt_tokens: int, size: int
) -> list[tuple[Prompt, Rollout]]:
    """`size` random completions of one random prompt."""
    grammar = GridGrammar(layout, height, width, size_ids=(1, 2, 3))
    ids = tuple(rng.integers(0, layout.text_ranks, prompt_tokens).tolist())
    prompt = Prompt("0", ids, grammar, np.zeros((height, width), np.uint16), "", None)
    rows = []
    for _ in range(size):
        grid = rng.integers(0, layout.codebook_size, (height, width))
        tokens = [layout.boi, *grammar.completion(grid.tolist())]
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

    def numbers(score: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> Way:
        def compute() -> list[Tensor]:
            inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, weight)]
            logprobs = score(*inputs)
            return [logprobs.detach(), *torch.autograd.grad(logprobs.sum(), inputs)]

        return compute

    return numbers(chunked, dtype), numbers(full, dtype), numbers(full, torch.float32)


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
