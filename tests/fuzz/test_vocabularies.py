"""Rank files, lists of visual codes and `tokenizer.json`: a vocabulary, or one line that says why it is none."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from mutations import broken_json, damaged

from emu3.errors import UserError
from emu3.mllm.text_tokenizer import TextTokenizer, train_ranks

FILES = ("emu3.tiktoken", "emu3_vision_tokens.txt", "tokenizer.json")


@cache
def saved() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_ranks(["make it red", "make it blue"], 260, folder / "ranks")
        TextTokenizer.from_rank_file(folder / "ranks", 4).save_pretrained(folder / "saved")
        return {file: (folder / "saved" / file).read_bytes() for file in FILES}


@cache
def tree() -> Any:
    return json.loads(saved()["tokenizer.json"])


def load(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        try:
            tokenizer = TextTokenizer.from_pretrained(name)
        except UserError as error:
            assert "\n" not in str(error), str(error)
        else:
            assert tokenizer.decode(tokenizer.encode("make it red")) == "make it red"


@given(st.data())
def test_a_damaged_rank_file(data: st.DataObject) -> None:
    """Also guards the texts that a vocabulary writes: one that was accepted reads back what it wrote."""
    ranks, vision = FILES[:2]
    load({ranks: data.draw(damaged(saved()[ranks])), vision: saved()[vision]})


@given(st.data())
def test_a_damaged_list_of_codes(data: st.DataObject) -> None:
    ranks, vision = FILES[:2]
    load({ranks: saved()[ranks], vision: data.draw(damaged(saved()[vision]))})


@given(st.data())
def test_another_tokenizer_json(data: st.DataObject) -> None:
    """The bindings of the library `tokenizers` end a process that gives them other things than they expect."""
    load({FILES[1]: saved()[FILES[1]], FILES[2]: data.draw(broken_json(tree()))})
