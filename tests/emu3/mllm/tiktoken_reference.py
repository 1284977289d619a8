"""tiktoken as the reference for text ids: the split pattern, and an encoding over a rank file."""

from __future__ import annotations

import base64
import importlib.util
import os
import unicodedata
from pathlib import Path

import tiktoken

from emu3.mllm.text_tokenizer import TextTokenizer

# Qwen's pattern, written out here as well: compared with the project's own, a changed one would go unnoticed.
QWEN_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def reference(path: Path, tokenizer: TextTokenizer) -> tiktoken.Encoding:
    lines = (line.split() for line in path.read_bytes().splitlines())
    specials = tokenizer.layout.special_forms()
    return tiktoken.Encoding(
        path.stem,
        pat_str=QWEN_PATTERN,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens={form: tokenizer.layout.pad + i for i, form in enumerate(specials)},
    )


def assert_same_ids(tokenizer: TextTokenizer, encoding: tiktoken.Encoding, text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    assert tokenizer.encode(text) == encoding.encode(composed, disallowed_special=()), repr(text)
    assert tokenizer.encode_with_specials(text) == encoding.encode(composed, allowed_special="all"), repr(text)
    assert tokenizer.decode(tokenizer.encode(text)) == composed


def qwen_rank_file() -> Path | None:
    """The published ranks: where QWEN_RANK_FILE says, or in the package dashscope."""
    if path := os.environ.get("QWEN_RANK_FILE"):
        return Path(path)
    package = importlib.util.find_spec("dashscope")
    found = Path(package.origin).parent / "resources" / "qwen.tiktoken" if package and package.origin else None
    return found if found and found.is_file() else None
