"""A model's weights on their way into vLLM: named tensors in the layout of a checkpoint, from memory to memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each parameter of a whole `Emu3ForCausalLM`; a shared one once."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


def with_head(weights: Iterable[tuple[str, Tensor]], *, tied: bool) -> Iterator[tuple[str, Tensor]]:
    """`weights` and, where the head shares the embeddings (`tied`), the head as a tensor of its own.

    vLLM keeps a packed copy of a head on CPUs, shared or not, and an update in place renews it only if it is named.
    """
    for name, tensor in weights:
        if not (tied and name == HEAD):
            yield name, tensor
        if tied and name == EMBEDDINGS:
            yield HEAD, tensor
