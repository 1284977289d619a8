"""The ids of the published vocabulary are a file format: one id off and a released checkpoint draws noise."""

import subprocess
import sys

import pytest

from emu3.mllm.layout import TokenLayout


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("pad", 151_643),
        ("eol", 151_846),
        ("eof", 151_847),
        ("bos", 151_849),
        ("eos", 151_850),
        ("img", 151_851),
        ("boi", 151_852),
        ("eoi", 151_853),
        ("first_code", 151_854),
        ("vocab_size", 184_622),
    ],
)
def test_published_ids(name: str, token: int) -> None:
    assert getattr(TokenLayout(), name) == token


@pytest.mark.parametrize(
    ("form", "token"),
    [
        ("<|endoftext|>", 151_643),
        ("<|im_start|>", 151_644),
        ("<|im_end|>", 151_645),
        ("<|extra_0|>", 151_646),
        ("<|extra_200|>", 151_846),
        ("<|extra_201|>", 151_847),
        ("<|extra_203|>", 151_849),
        ("<|extra_204|>", 151_850),
        ("<|image token|>", 151_851),
        ("<|image start|>", 151_852),
        ("<|image end|>", 151_853),
    ],
)
def test_published_surface_forms(form: str, token: int) -> None:
    layout = TokenLayout()
    assert layout.special_forms()[token - layout.pad] == form


def test_special_forms_fill_the_ids_between_text_and_codes() -> None:
    """A form too many or twice would shift every visual code."""
    layout = TokenLayout()
    forms = layout.special_forms()
    assert len(forms) == len(set(forms)) == layout.first_code - layout.pad == 3 + 205 + 3


@pytest.mark.parametrize(("text_ranks", "codebook_size"), [(256, 1), (300, 256), (1_000, 4_096)])
def test_a_small_vocabulary_is_the_published_one_moved(text_ranks: int, codebook_size: int) -> None:
    """Tiny models stand for the real one only if nothing but the two sizes differs."""
    small, published = TokenLayout(text_ranks, codebook_size), TokenLayout()
    for name in ("pad", "eol", "eof", "bos", "eos", "img", "boi", "eoi", "first_code"):
        assert getattr(small, name) - text_ranks == getattr(published, name) - published.text_ranks
    assert small.vocab_size == small.first_code + codebook_size
    assert small.special_forms() == published.special_forms()


def test_layout_and_grammar_import_no_framework() -> None:
    """Servers and data workers import these two; torch alone would cost each of them seconds and memory."""
    script = (
        "import sys, emu3.mllm.layout, emu3.mllm.layout\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'tokenizers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
