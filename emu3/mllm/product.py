"""How the linear layers of a model multiply float32 numbers on a CPU.

| product | factors | sums, results, weights, gradients | why |
|---|---|---|---|
| `plain` | float32 | float32 | torch's own, which is MKL's |
| `onednn` | float32 | float32 | MKL takes half the speed of a processor that is not Intel's; oneDNN all of it |
| `bf16` | rounded to bfloat16 | float32 | processors that multiply bfloat16 (AMX, AVX512-BF16) |

`onednn` adds up in another order and is as exact as `plain`. `bf16` rounds each factor to 8 bits, a relative error of
2^-9 at most, and nothing else: no tensor is kept in bfloat16, as autocast would, and norms, attention, the head and its
softmax stay as they are. Attention also because oneDNN is slow at products of its size: the kernel of "sdpa" takes five
times as long with rounded factors.

Sampler, trainer and reference of one run have the same product, so that a ratio is 1 where the policy has not moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu3.errors import UserError
from emu3.settings import Product

WORTH = 1.25  # times as fast: what is said at a start


def check_product(key: str, product: Product, device: torch.device) -> None:
    """Raise UserError where `device` is no CPU or the processor cannot do it.

    key: what a user writes before the value, such as `--product `.
    """
    if product != "plain" and device.type != "cpu":
        raise UserError(f"{key}{product} is for CPUs, and this run is on {device.type}: leave it out")
    if not can_multiply(product):
        raise UserError(f"{key}{product}: this processor has no such product, or this torch: leave it out")


def use_product(model: nn.Module, product: Product) -> None:
    """Let every linear layer inside `model`, on the CPU, multiply so, the head apart; before adapters are put in."""
    if product == "plain":
        return
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear and name != "lm_head":
            layer.__class__ = _LAYERS[product]


def say_faster(key: str, product: Product, device: torch.device) -> None:
    """Print a line where another product is faster by `WORTH` on this processor; a fraction of a second of timing."""
    if device.type != "cpu":
        return
    arguments = torch.ones(512, 256), torch.ones(768, 256), torch.ones(512, 768)
    seconds = {one: min(_seconds(one, *arguments) for _ in range(5)) for one in get_args(Product) if can_multiply(one)}
    best = min(seconds, key=lambda one: seconds[one])
    if (times := seconds[product] / seconds[best]) >= WORTH:
        print(f"note: linear layers are {times:.1f} times as fast on this processor with {key}{best}", flush=True)


def _seconds(product: Product, x_N_D: Tensor, weight_F_D: Tensor, grad_N_F: Tensor) -> float:
    """Of a linear layer's three products."""
    multiply, start = _PRODUCTS[product], time.perf_counter()
    multiply(x_N_D, weight_F_D, None)
    multiply(grad_N_F, weight_F_D.t(), None)
    multiply(grad_N_F.t(), x_N_D.t(), None)
    return time.perf_counter() - start


def can_multiply(product: Product) -> bool:
    """Whether this processor and this torch have the product."""
    if product == "plain":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    return product == "onednn" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn(x: Tensor, weight_F_D: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_F_D, bias, "none", [], "")


def _bf16(x: Tensor, weight_F_D: Tensor, bias: Tensor | None) -> Tensor:
    with _rounded_factors():
        return F.linear(x, weight_F_D, bias)


@contextmanager
def _rounded_factors() -> Iterator[None]:
    """torch's products of float32 round their factors to bfloat16 (on a CPU; 0.2 microseconds)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


_PRODUCTS: dict[Product, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "plain": F.linear,
    "onednn": _onednn,
    "bf16": _bf16,
}


class _Product(torch.autograd.Function):
    """x (..., D) times a weight (F, D), plus a bias (F,) or None; all three products of it by the same function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_F_D: Tensor, bias: Tensor | None, product: Product) -> Tensor:
        ctx.save_for_backward(x, weight_F_D)
        ctx.product = product
        return _PRODUCTS[product](x, weight_F_D, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_F_D = ctx.saved_tensors
        multiply = _PRODUCTS[ctx.product]
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        grad_N_F = grad.flatten(0, -2)
        return (
            multiply(grad, weight_F_D.t(), None) if of_x else None,
            multiply(grad_N_F.t(), x.flatten(0, -2).t(), None) if of_weight else None,
            grad_N_F.sum(0) if of_bias else None,
            None,
        )


class _OneDnnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self.weight, self.bias, "onednn")


class _RoundedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self.weight, self.bias, "bf16")


_LAYERS: dict[Product, type[nn.Linear]] = {"onednn": _OneDnnLinear, "bf16": _RoundedLinear}
