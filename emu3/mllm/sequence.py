"""What the model reads and what it should write, as token ids.

prompt: bos, image block of the source, instruction. No chat template and no separator.
completion: image block of the edited image, eos; with reasoning its text comes first. The two "thinking" marks are
ordinary text. Prompt and completion are encoded apart, so that no BPE merge crosses the line between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from emu3.mllm.layout import GridGrammar

if TYPE_CHECKING:
    from emu3.mllm.text_tokenizer import TextTokenizer

THINK_PREFILL = " Let's think step by step. <|start thinking|>"
THINK_END = "<|end thinking|>"


def grid_grammar(tokenizer: TextTokenizer, height: int, width: int) -> GridGrammar:
    """The grammar of a completion whose image has `height` x `width` codes."""
    return GridGrammar(tokenizer.layout, height, width, tokenizer.size_ids(height, width))


def edit_prompt(tokenizer: TextTokenizer, source_codes: np.ndarray, instruction: str) -> list[int]:
    """Ids of bos, the source's image block and the instruction.

    source_codes: integers (height, width) in [0, codebook size), else ValueError.
    """
    layout = tokenizer.layout
    return [layout.bos, *_image_block(tokenizer, source_codes), *tokenizer.encode(instruction)]


def edit_target(tokenizer: TextTokenizer, edited_codes: np.ndarray, reasoning: str | None) -> list[int]:
    """Ids of the completion: `reasoning` (from `reasoning_text`) if there is one, the edited image's block, eos.

    edited_codes: integers (height, width) in [0, codebook size), else ValueError.
    """
    thought = [] if reasoning is None else tokenizer.encode(reasoning)
    return [*thought, *_image_block(tokenizer, edited_codes), tokenizer.layout.eos]


def reasoning_text(cot: Mapping[str, str], keys: Sequence[str], limit: int = 1750) -> str | None:
    """The text before a reasoned completion: "key: text" of each of `keys` that the row has, cut at `limit` characters.

    None if the row has none of them. The limit holds for the chain without the marks around it. It starts with
    `THINK_PREFILL`, whose ids alone are also the first ids of the whole text, so a model trained on the one
    continues the other.
    """
    chain = " ".join(f"{key}: {cot[key].strip()}" for key in keys if key in cot)
    return f"{THINK_PREFILL} {chain[:limit]}{THINK_END}" if chain else None


def _image_block(tokenizer: TextTokenizer, codes: np.ndarray) -> list[int]:
    """boi, "H*W", img, rows closed by eol, eof, eoi."""
    if codes.ndim != 2 or codes.size == 0 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"an image is a grid of integer codes, got shape {codes.shape} of {codes.dtype}")
    completion = grid_to_ids(grid_grammar(tokenizer, *codes.shape), codes)
    return [tokenizer.layout.boi, *completion[:-1].tolist()]


def grid_to_ids(grammar: GridGrammar, codes: np.ndarray) -> np.ndarray:
    """The tokens that follow `boi` for `codes`, integers (height, width): int64 (grammar.length,).

    Raises ValueError for another shape and for codes outside the codebook.
    """
    if codes.shape != (grammar.height, grammar.width):
        raise ValueError(f"expected {grammar.height} rows of {grammar.width} codes, got shape {codes.shape}")
    if codes.min() < 0 or codes.max() >= grammar.layout.codebook_size:
        raise ValueError(f"codes run from 0 to {grammar.layout.codebook_size - 1}, got {codes.min()} to {codes.max()}")
    completion, free = _template(grammar)
    ids = completion.copy()
    ids[free] += codes.reshape(-1)
    return ids


def ids_to_grid(grammar: GridGrammar, ids: np.ndarray) -> np.ndarray:
    """The codes, int64 (height, width), in the tokens that follow `boi`, integers (grammar.length,).

    Raises ValueError if they break the grammar.
    """
    completion, free = _template(grammar)
    if ids.shape != completion.shape:
        raise ValueError(f"a {grammar.height}x{grammar.width} grid has {len(completion)} tokens, got {ids.shape}")
    difference = ids - completion
    codes = difference[free]
    difference[free] = 0
    if difference.any() or codes.min() < 0 or codes.max() >= grammar.layout.codebook_size:
        grammar.codes(ids.tolist())  # says which token it is
    return codes.reshape(grammar.height, grammar.width)


@lru_cache(maxsize=1024)
def _template(grammar: GridGrammar) -> tuple[np.ndarray, np.ndarray]:
    """The completion of a grid of zeros, and the places of its codes."""
    zeros = [[0] * grammar.width] * grammar.height
    completion, free = np.array(grammar.completion(zeros)), np.array(grammar.free_offsets())
    completion.flags.writeable = False
    return completion, free
