"""A small model whose every trait vLLM has to know: biases, a shared head, fewer key-value heads than heads."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Emu3ForCausalLM

from emu3.mllm.generate import Completion, Request
from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import GridGrammar, TokenLayout

LAYOUT = TokenLayout(text_ranks=40, codebook_size=24)
SMALL = GridGrammar(LAYOUT, 2, 3, size_ids=(2, 9, 3))
LARGE = GridGrammar(LAYOUT, 6, 5, size_ids=(6, 9, 5))


def world_model(seed: int = 0, tied: bool = True) -> Emu3ForCausalLM:
    """Biases and norms are not left at 0 and 1, where their absence would not show."""
    model = new_language_model(
        LAYOUT,
        hidden_size=64,
        layers=2,
        heads=2,
        kv_heads=1,
        ffn_size=96,
        max_positions=256,
        rope_theta=100.0,
        attention_bias=tied,
        tie_embeddings=tied,
        initializer_range=0.2,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def world_request(
    prompt: int, group: int, grammar: GridGrammar = SMALL, think: bool = False, length: int = 70
) -> Request:
    """A random prompt of `length` tokens, more than two of the cache's blocks."""
    ids = torch.randint(0, LAYOUT.vocab_size, (length,), generator=torch.Generator().manual_seed(prompt))
    return Request(tuple(ids.tolist()), grammar, tuple((7, prompt, sample) for sample in range(group)), think)


@torch.no_grad()
def teacher_forced(
    model: Emu3ForCausalLM, request: Request, sample: Completion, temperature: float, think_tokens: int
) -> Tensor:
    """The log-probability of each of the sample's tokens, from one forward pass, the legal ids spelled out."""
    logits = model(torch.tensor([[*request.prompt, *sample.tokens]])).logits[0].double()
    thought = len(sample.tokens) - request.grammar.length - 1
    found = []
    for place, token in enumerate(sample.tokens):
        if place > thought:
            legal = list(range(*request.grammar.legal(place - thought - 1)))
        elif request.think and place < think_tokens:
            legal = [*range(LAYOUT.pad), LAYOUT.boi]
        else:
            legal = [LAYOUT.boi]
        row = logits[len(request.prompt) + place - 1, legal] / temperature
        found.append(row.log_softmax(-1)[legal.index(token)])
    return torch.stack(found)
