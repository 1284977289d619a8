"""The files that a vocabulary comes in: tiktoken ranks, names of the visual codes, `tokenizer.json`.

tiktoken rank files are lines of a base64 token and its rank. tiktoken joins, again and again, the leftmost pair whose
joined bytes have the lowest rank. A BPE model instead takes named pairs. One pair per rank is enough: nothing outside a
token's bytes can change in which order the pairs inside merge, so a token is only ever built in the step that builds it
from its own bytes alone. A rank that greedy merging of its own bytes does not reach has no pair; it can only stand for
a whole piece, which tiktoken looks up first.

`emu3_vision_tokens.txt` lists the names that published files give the visual codes. They only say how many codes
there are: their ids are arithmetic (`emu3.mllm.layout`), and no code is ever looked for in a text.

Of `tokenizer.json` two kinds occur. Ours stands beside `emu3_vision_tokens.txt`. transformers' conversion of a release
(`BAAI/Emu3-Gen-hf`) stands alone: every visual code is an added token, the special tokens are in the vocabulary of
the BPE as well, and an extra without a meaning may have another name (`<image>`). It also cuts text by GPT-2's
pattern and leaves NFC out, so run as it is it gives other ids than the model was trained on. That is why only ranks,
merges and ids are taken from the file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import models

from emu3.errors import UserError, one_line
from emu3.files import read_json
from emu3.mllm.layout import TokenLayout


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes -> rank, in rank order.

    Raises UserError if the file is missing or malformed, or the ranks are not 0 ... n-1 with all 256 single bytes.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"{path}, line {number}: expected a base64 token and its rank") from None
    ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
    if list(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{path}: a token or a rank is there twice, or the ranks do not run from 0 without a gap")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(f"{path}: not every single byte has a rank")
    return ranks


def write_ranks(path: Path, tokens: Iterable[bytes]) -> None:
    """Write a rank file; the rank of a token is its place in `tokens`."""
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair behind each rank that merging reaches, in rank order. `ranks` must be in rank order itself."""
    pairs = (_last_merge(token, ranks) for token in ranks if len(token) > 1)
    return [pair for pair in pairs if pair is not None]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    never = len(ranks)
    # Part i is token[cuts[i] : cuts[i + 1]]; scores[i] is the rank of parts i and i + 1 together.
    cuts = list(range(len(token) + 1))
    scores = [ranks.get(token[i : i + 2], never) for i in range(len(token) - 1)]
    while len(scores) > 1:
        lowest = min(scores)
        if lowest == never:
            return None
        i = scores.index(lowest)  # the leftmost of equals
        del cuts[i + 1], scores[i]
        for left in range(max(i - 1, 0), min(i + 1, len(scores))):
            scores[left] = ranks.get(token[cuts[left] : cuts[left + 2]], never)
    return token[: cuts[1]], token[cuts[1] :]


CODE_PREFIX = "<|visual token "


def code_names(codebook_size: int) -> list[str]:
    """The name of each visual code, in order."""
    return [f"{CODE_PREFIX}{code:06d}|>" for code in range(codebook_size)]


def write_vision_file(path: Path, layout: TokenLayout) -> None:
    """Write `emu3_vision_tokens.txt`: the three image marks, then a name for each visual code, one a line."""
    path.write_text("\n".join(_lines(layout)) + "\n", encoding="utf-8")


def read_vision_file(path: Path) -> int:
    """The number of visual codes. Raises UserError if the file is missing or its lines are others."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the folder holds no Emu3 tokenizer") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    codebook_size = len(lines) - 3
    expected = _lines(TokenLayout(codebook_size=codebook_size))
    for number, (line, form) in enumerate(zip(lines, expected, strict=False), start=1):
        if line != form:
            raise UserError(f"{path}, line {number}: expected {form}, found {line[:40]!r}")
    if codebook_size < 1:
        raise UserError(f"{path} names no visual code")
    return codebook_size


def _lines(layout: TokenLayout) -> list[str]:
    return [*layout.special_forms()[-3:], *code_names(layout.codebook_size)]


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
        named = all(isinstance(form, str) for form in added)
    except (KeyError, TypeError):
        named = False
    if not named:
        raise UserError(f"{path} is not a tokenizer of the library `tokenizers`")
    if kind != "BPE":
        raise UserError(f"{path} is not an Emu3 tokenizer: its model is {kind}, not BPE")
    codes = {form: token for form, token in added.items() if form.startswith(CODE_PREFIX)}
    text_ranks = added.get("<|endoftext|>")
    if type(text_ranks) is not int or text_ranks < 256:  # the single bytes at least
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
            raise UserError(f"{path} gives {form} the id {added.get(form)}, expected {token}")


def _bpe(path: Path, model: Mapping[str, Any], text_ranks: int) -> models.BPE:
    try:
        ranks = {name: rank for name, rank in model["vocab"].items() if rank < text_ranks}
        merges = [_pair(merge) for merge in model["merges"]]
        if len(ranks) != text_ranks or sorted(ranks.values()) != list(range(text_ranks)):
            raise ValueError(f"its text tokens do not have the ids 0 to {text_ranks - 1}")
        return models.BPE(ranks, merges, ignore_merges=True)
    except Exception as error:  # the bindings raise no narrower class
        raise UserError(f"{path} is not an Emu3 tokenizer: {one_line(error)}") from None


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Older files write "a b", newer ones ["a", "b"]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
