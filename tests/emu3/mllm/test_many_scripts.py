"""Ids of a long text in many scripts have to be tiktoken's, with ranks trained here and with the published ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from many_scripts import letters_by_script, sample
from tiktoken_reference import assert_same_ids, qwen_rank_file, reference

from emu3.mllm.layout import TokenLayout
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks

CHARACTERS = 120_000


@pytest.fixture(scope="module")
def text() -> str:
    text = sample(CHARACTERS, seed=0)
    frequent = [script for script, letters in letters_by_script(text).items() if letters >= 1_000]
    assert len(text) >= 100_000 and len(frequent) >= 15
    return text


def with_specials(text: str) -> str:
    """The text with a special token's surface form in the place of every 20th blank."""
    draw, forms = random.Random(1), TokenLayout().special_forms()
    first, *words = text.split(" ")
    return first + "".join((draw.choice(forms) if draw.random() < 0.05 else " ") + word for word in words)


def assert_same_everywhere(path: Path, codebook_size: int, text: str) -> TextTokenizer:
    tokenizer = TextTokenizer.from_rank_file(path, codebook_size)
    encoding = reference(path, tokenizer)
    # Line by line a failure can be read; as a whole, blanks and line ends between the lines are compared as well.
    for line in text.splitlines():
        assert_same_ids(tokenizer, encoding, line)
    assert_same_ids(tokenizer, encoding, text)
    special = with_specials(text)
    assert_same_ids(tokenizer, encoding, special)
    assert sum(token >= tokenizer.layout.pad for token in tokenizer.encode_with_specials(special)) > 300
    assert max(tokenizer.encode(special)) < tokenizer.layout.pad
    return tokenizer


def test_ids_equal_tiktoken_with_ranks_trained_here(tmp_path: Path, text: str) -> None:
    """Merges across the bytes of letters that are not Latin; the ranks are learned from other text of the kind."""
    path = tmp_path / "trained.tiktoken"
    assert train_ranks(sample(30_000, seed=1).splitlines(), 1_500, path) == 1_500
    tokenizer = assert_same_everywhere(path, 16, text)
    assert len(tokenizer.encode(text)) < 0.7 * len(text.encode())


@pytest.mark.skipif(qwen_rank_file() is None, reason="needs QWEN_RANK_FILE or the package dashscope")
def test_ids_equal_tiktoken_with_the_published_ranks(text: str) -> None:
    path = qwen_rank_file()
    assert path is not None
    tokenizer = assert_same_everywhere(path, 32_768, text)
    assert tokenizer.layout == TokenLayout()
    assert tokenizer.layout.vocab_size == 184_622
    assert tokenizer.size_ids(32, 32) == (18, 17, 9, 18, 17)
