"""`tokenizer.json`: the byte-level BPE inside it, and which ids its special tokens have.

Two kinds occur. Ours stands beside `emu3_vision_tokens.txt`. transformers' conversion of a release
(`BAAI/Emu3-Gen-hf`) stands alone: every visual code is an added token, the special tokens are in the vocabulary of
the BPE as well, and an extra without a meaning may have another name (`<image>`). It also cuts text by GPT-2's
pattern and leaves NFC out, so run as it is it gives other ids than the model was trained on. That is why only ranks,
merges and ids are taken from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import models

from emu3.errors import UserError
from emu3.files import read_json
from emu3.mllm.code_names import CODE_PREFIX, code_names
from emu3.mllm.layout import TokenLayout


@dataclass(frozen=True)
class SavedTokenizer:
    """The text ranks as a BPE model, and the number of visual codes that are named, 0 if none is."""

    bpe: models.BPE
    codebook_size: int


def read_tokenizer_json(path: Path) -> SavedTokenizer:
    """Raises UserError if the file is no tokenizer, no byte-level BPE, or its special tokens are not Emu3's."""
    values = read_json(path)
    try:
        kind, added = values["model"]["type"], {token["content"]: token["id"] for token in values["added_tokens"]}
    except (KeyError, TypeError):
        raise UserError(f"{path} is not a tokenizer of the library `tokenizers`") from None
    if kind != "BPE":
        raise UserError(f"{path} is not an Emu3 tokenizer: its model is {kind}, not BPE")
    codes = {form: token for form, token in added.items() if form.startswith(CODE_PREFIX)}
    text_ranks = added.get("<|endoftext|>")
    if not isinstance(text_ranks, int):
        raise UserError(f"{path} is not an Emu3 tokenizer: it has no <|endoftext|>")
    layout = TokenLayout(text_ranks, len(codes))
    _check_specials(path, added, layout)
    if codes != {form: layout.first_code + code for code, form in enumerate(code_names(len(codes)))}:
        raise UserError(f"{path} does not give the visual codes the ids from {layout.first_code} on, in their order")
    return SavedTokenizer(_bpe(path, values["model"], text_ranks), len(codes))


def _check_specials(path: Path, added: Mapping[str, Any], layout: TokenLayout) -> None:
    forms = layout.special_forms()
    for token in (layout.eol, layout.eof, layout.bos, layout.eos, layout.img, layout.boi, layout.eoi):
        form = forms[token - layout.pad]
        if added.get(form) != token:
            raise UserError(f"{path} gives {form} the id {added.get(form)}, the Emu3 layout wants {token}")


def _bpe(path: Path, model: Mapping[str, Any], text_ranks: int) -> models.BPE:
    try:
        ranks = {name: rank for name, rank in model["vocab"].items() if rank < text_ranks}
        merges = [_pair(merge) for merge in model["merges"]]
        if sorted(ranks.values()) != list(range(text_ranks)):
            raise ValueError(f"its text tokens do not have the ids 0 to {text_ranks - 1}")
        return models.BPE(ranks, merges, ignore_merges=True)
    except Exception as error:  # the bindings raise no narrower class
        raise UserError(f"{path} is not an Emu3 tokenizer: {error}") from None


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Older files write "a b", newer ones ["a", "b"]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
