"""What one micro-batch takes while it trains a model of Emu3's shape, counted tensor by tensor.

The tensors are those that transformers' Emu3 layer keeps for its backward pass, as Korthikanti et al.
(arXiv:2205.05198) count them for GPT, and what is there besides at the moments that can be the largest: the end of the
forward pass, the backward pass of the head (`emu3.mllm.head`), and that of the last layer's MLP. The counts are
held against traces of the real modules at 8B shapes (`tests/fake_gpu`). A kernel's own work space is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import Emu3TextConfig

from emu3.mllm.head import CHUNK_BYTES

Parts = dict[str, float]
"""Bytes by what they are for."""


@dataclass(frozen=True)
class ModelSizes:
    """Widths and counts of parameters."""

    model: Emu3TextConfig

    @property
    def width(self) -> int:
        return self.model.hidden_size

    @property
    def layers(self) -> int:
        return self.model.num_hidden_layers

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.model.num_attention_heads * self._head

    @property
    def keys(self) -> int:
        """Width of all key heads; the values have the same."""
        return (self.model.num_key_value_heads or self.model.num_attention_heads) * self._head

    @property
    def _head(self) -> int:
        head: int = getattr(self.model, "head_dim", None) or self.width // self.model.num_attention_heads
        return head

    @property
    def projections(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of one layer."""
        q, k, d, f = self.queries, self.keys, self.width, self.model.intermediate_size
        return [(d, q), (d, k), (d, k), (q, d), (d, f), (d, f), (f, d)]

    @property
    def trunk(self) -> int:
        """Parameters in the matrices of all layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.projections)

    @property
    def vocabulary(self) -> int:
        """Parameters of the embedding, and of the head."""
        return self.model.vocab_size * self.width

    @property
    def parameters(self) -> int:
        biases = self.layers * (self.queries + 2 * self.keys) if getattr(self.model, "attention_bias", False) else 0
        tables = self.vocabulary * (1 if self.model.tie_word_embeddings else 2)
        return self.trunk + biases + tables + (2 * self.layers + 1) * self.width

    def trainable(self, lora_rank: int | None) -> int:
        """Parameters that have gradients."""
        if lora_rank is None:
            return self.parameters
        return self.layers * lora_rank * sum(map(sum, self.projections))

    def largest_trainable(self, lora_rank: int | None) -> int:
        """Elements of the largest tensor that has a gradient."""
        if lora_rank is None:
            return max(self.vocabulary, self.width * self.model.intermediate_size)
        return lora_rank * max(map(max, self.projections))


@dataclass(frozen=True)
class Scored:
    """Tokens of a micro-batch whose log-probabilities are taken among `ids` rows of the head.

    sliced: the rows are a view of the table, so that their gradient becomes one of the whole table. copied: they are
    put together from several views.
    """

    tokens: int
    ids: int
    sliced: bool = False
    copied: bool = False


@dataclass(frozen=True)
class Pass:
    """One micro-batch on its way forward and back.

    tokens: rows of the residual stream. scored: in the order in which they go through the head. element: bytes of a
    number in a product. stream: bytes of a number in the residual stream, which has the precision of the stored
    weights; larger than `element` under autocast. lora_rank: None trains all weights. seen: keys that a token's
    scores are kept for, by attention that keeps them (`eager`), else 0.
    """

    sizes: ModelSizes
    tokens: int
    scored: tuple[Scored, ...]
    element: int = 2
    stream: int = 2
    checkpointing: bool = False
    lora_rank: int | None = None
    seen: int = 0

    @property
    def casts(self) -> bool:
        return self.element != self.stream

    @property
    def layer(self) -> float:
        """Bytes per token that a layer keeps for its backward pass."""
        sizes, element = self.sizes, self.element
        # Of each of two norms its input in float32, and what its gain is multiplied with, unless that is frozen.
        norms = 2 * (4 + (0 if self.lora_rank else self.stream)) * sizes.width
        # Inputs of q, k, v and of gate, up: one tensor for each group, or under autocast a copy for each matrix.
        inputs = (5 if self.casts else 2) * element * sizes.width
        heads = sizes.model.num_attention_heads
        attention = element * (2 * sizes.queries + 2 * sizes.keys) + 4 * heads
        attention += (4 if element == 4 else 6) * heads * self.seen
        mlp = 4 * element * sizes.model.intermediate_size
        return norms + inputs + attention + mlp + 7 * element * (self.lora_rank or 0)

    @property
    def inputs(self) -> float:
        """Bytes per token that wait for the backward pass: all that layers keep, or the inputs of the layers alone."""
        return self.sizes.layers * (self.stream * self.sizes.width if self.checkpointing else self.layer)

    @property
    def end(self) -> float:
        """Bytes of the last norm and of the hidden states that are scored."""
        scored = sum(part.tokens for part in self.scored)
        norm = 4 + (0 if self.lora_rank else self.stream)
        return self.sizes.width * (norm * self.tokens + self.stream * scored)

    @property
    def _copies(self) -> float:
        """Autocast's copies of what is trained; they stay as long as its context, or a backward pass needs them."""
        return 2 * min(self.sizes.trainable(self.lora_rank), self.sizes.trunk) if self.casts else 0

    def forward(self) -> Parts:
        """Without gradient: the larger of a layer's work and the head's."""
        scored = sum(part.tokens for part in self.scored)
        head = self._head_forward() + self.stream * self.sizes.width * scored
        # With the stream and its start; transformers holds on to the embedded tokens.
        layer = self._layer_forward + 2 * self.stream * self.sizes.width
        return {"activations": self.tokens * layer, "head": head}

    @property
    def _layer_forward(self) -> float:
        """Bytes per token at the product of gate and up, the residual and what the norm made of it besides."""
        return 3 * self.element * self.sizes.model.intermediate_size + 2 * self.stream * self.sizes.width

    def moments(self) -> dict[str, Parts]:
        """What there is at each moment that can be the largest of a training pass."""
        sizes, waiting = self.sizes, self.inputs * self.tokens
        frozen = 2 * sizes.trunk if self.casts and self.lora_rank and not self.checkpointing else 0
        kept = {"bf16 copies": self._copies + frozen} if self.casts else {}
        backward = 2 * self.element * sizes.model.intermediate_size + self.stream * sizes.width
        layer = self.layer if self.checkpointing else 0
        found: dict[str, Parts] = {
            "the forward pass": {"activations": waiting + self.end, "head": self._head_forward(), **kept},
            "the head": {"activations": waiting + self.end, "head": self._head_backward()},
            "the last layer": {"activations": waiting + (layer + backward) * self.tokens},
        }
        if self.checkpointing:
            forward = {"activations": waiting + self._layer_forward * self.tokens, **kept}
            found["the last layer's forward pass"] = forward
        elif self.casts:
            for moment in ("the head", "the last layer"):
                found[moment].update(kept)
        if not self.lora_rank:
            found["the embedding"] = {
                "activations": 2 * self.stream * sizes.width * self.tokens,
                "head": self.stream * sizes.vocabulary,
            }
        return found

    def _head_forward(self) -> float:
        """The log-softmax of a chunk's logits in float32, the exponentials and a product."""
        return max((self._chunks(part)[1] * 3 + self._head_copy(part) for part in self.scored), default=0)

    def _head_backward(self) -> float:
        """The largest moment while the scored parts go backward, the last one first. Where a part has several chunks
        the gradient of the head that a chunk makes is added to that of those before."""
        table, peak, done = self.stream * self.sizes.vocabulary, 0.0, 0.0
        for part in reversed(self.scored):
            chunks, logits = self._chunks(part)
            gradient = 0.0 if self.lora_rank else self.stream * part.ids * self.sizes.width
            before = gradient if chunks > 1 else 0.0
            # Log-softmax, its gradient and what that is made from; then the gradient of the logits in two precisions.
            chunk = before + max(3.5 * logits, 1.5 * logits + gradient)
            slicing = gradient + (2 if part.copied else 1) * table if part.sliced and gradient else 0.0
            peak = max(peak, done + self._head_copy(part) + chunk, done + slicing)  # by then nobody needs the copy
            done = table if slicing else done + gradient
        return peak + self.stream * self.sizes.width * sum(part.tokens for part in self.scored)

    def _chunks(self, part: Scored) -> tuple[int, float]:
        """How many chunks the head takes the part in, and the bytes of one's logits in float32."""
        rows = max(1, min(part.tokens, CHUNK_BYTES // (4 * part.ids)))
        return math.ceil(part.tokens / rows), 4.0 * rows * part.ids

    def _head_copy(self, part: Scored) -> float:
        """Rows that are put together, and autocast's copy of them."""
        bytes_per_number = (self.stream if part.copied else 0) + (2 if self.casts else 0)
        return float(bytes_per_number * part.ids * self.sizes.width)
