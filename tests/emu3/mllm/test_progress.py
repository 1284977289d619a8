"""The bar of a sampling run counts what is sampled, and leaves the model alone."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

from emu3.mllm import editor
from emu3.mllm.editor import token_bar
from emu3.mllm.generate import Request, generate
from emu3.mllm.language_model import load_language_model
from emu3.mllm.sequence import grid_grammar
from emu3.mllm.text_tokenizer import TextTokenizer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> TextTokenizer:
    return TextTokenizer.from_pretrained(tiny_model_folder)


def requests_of(tokenizer: TextTokenizer, *sizes: tuple[int, int, int], think: bool = False) -> list[Request]:
    """One request per (height, width, samples)."""
    prompt = tuple(tokenizer.encode("make the sky purple"))
    return [
        Request(prompt, grid_grammar(tokenizer, height, width), tuple((0, s) for s in range(samples)), think)
        for height, width, samples in sizes
    ]


def test_the_bar_ends_at_its_end(
    tiny_model_folder: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the time left it shows, for one code, for unequal grids and for groups that are split."""
    monkeypatch.setattr(editor, "tqdm", partial(tqdm, file=Terminal()))
    model = load_language_model(tiny_model_folder)
    for sizes in ([(1, 1, 1)], [(3, 2, 1)], [(2, 4, 3), (2, 4, 3), (3, 3, 3)], [(2, 2, 20)]):
        requests = requests_of(tokenizer, *sizes)
        with token_bar(model, requests) as bar:
            generate(model, tokenizer.layout, requests)
        assert bar.n == bar.total == sum(n * (h * (w + 1) - 2) for h, w, n in sizes)


def test_thinking_has_no_known_end(
    tiny_model_folder: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editor, "tqdm", partial(tqdm, file=Terminal()))
    model = load_language_model(tiny_model_folder)
    requests = requests_of(tokenizer, (2, 2, 1), think=True)
    with token_bar(model, requests) as bar:
        generate(model, tokenizer.layout, requests, think_tokens=5)
    assert bar.total is None and bar.n >= 4


def test_nothing_stays_behind(
    tiny_model_folder: Path, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards a log from control characters, and later calls of the model from a bar that is closed."""
    model = load_language_model(tiny_model_folder)
    with pytest.raises(KeyError), token_bar(model, requests_of(tokenizer, (2, 2, 1))):
        raise KeyError
    assert not model.model._forward_pre_hooks
    assert capsys.readouterr().err == ""
