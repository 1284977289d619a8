"""Instructions and reasoning to token ids and back; visual codes never pass through here.

Emu3 writes text in Qwen's byte-level BPE, published as a tiktoken rank file. The same ids come from a `tokenizers` BPE,
which any `AutoTokenizer` loads without the checkpoint's remote code. A release that transformers has converted holds
that BPE already (both are read here).

Two pipelines share that BPE. One knows no special token, so `<|image start|>` typed by a person stays text. The
other has the special tokens added; it is the one that is saved, and it serves `encode_with_specials`. The visual
codes are in neither: their ids are arithmetic (`emu3.mllm.layout`), and files only give their number.

tiktoken rank files are lines of a base64 token and its rank. tiktoken joins, again and again, the leftmost pair whose
joined bytes have the lowest rank. A BPE model instead takes named pairs. One pair per rank is enough: nothing outside a
token's bytes can change in which order the pairs inside merge, so a token is only ever built in the step that builds it
from its own bytes alone. A rank that greedy merging of its own bytes does not reach has no pair; it can only stand for
a whole piece, which tiktoken looks up first.

Of `tokenizer.json` two kinds occur. Ours stands beside `emu3_vision_tokens.txt`, which lists the names that published
files give the visual codes. transformers' conversion of a release (`BAAI/Emu3-Gen-hf`) stands alone: every visual code
is an added token, the special tokens are in the vocabulary of the BPE as well, and an extra without a meaning may have
another name (`<image>`). It also cuts text by GPT-2's pattern and leaves NFC out, so run as it is it gives other ids
than the model was trained on. That is why only ranks, merges and ids are taken from the file.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from emu3.errors import UserError, one_line
from emu3.files import read_json, sha256_of, whole_file
from emu3.hub import SMALL_FILES, local_folder
from emu3.mllm.layout import TokenLayout

RANK_FILE = "emu3.tiktoken"
VISION_FILE = "emu3_vision_tokens.txt"
TOKENIZER_FILE = "tokenizer.json"
CODE_PREFIX = "<|visual token "

# Qwen's split pattern is part of the format: another pattern gives other ids, without any error.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The BPE model names its tokens by one printable character per byte.
_CHARACTERS: dict[int, str] = bytes_to_unicode()
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


class TextTokenizer:
    """Text tokenizer of an Emu3-shaped model.

    bpe: a byte-level BPE model whose ids are the ranks 0 ... n-1.
    codebook_size: number of visual codes, which completes `layout`.
    """

    def __init__(self, bpe: models.BPE, codebook_size: int) -> None:
        self._text = _pipeline(bpe)
        self.layout = TokenLayout(self._text.get_vocab_size(), codebook_size)
        self._with_specials = _pipeline(bpe)
        # Looked for after NFC (`normalized`), as the published tokenizer does.
        self._with_specials.add_special_tokens(
            [AddedToken(form, special=True, normalized=True) for form in self.layout.special_forms()]
        )

    @classmethod
    def from_rank_file(cls, path: Path | str, codebook_size: int) -> TextTokenizer:
        """Build from a tiktoken rank file. Raises UserError if it is missing or malformed."""
        ranks = read_ranks(Path(path))
        vocabulary = {_name(token): rank for token, rank in ranks.items()}
        merges = [(_name(left), _name(right)) for left, right in merges_of(ranks)]
        return cls(models.BPE(vocabulary, merges, ignore_merges=True), codebook_size)

    @classmethod
    def from_pretrained(cls, name: Path | str) -> TextTokenizer:
        """Load from a folder or Hub id (`emu3.hub`) with `tokenizer.json` or else, slower, `emu3.tiktoken`.

        `emu3_vision_tokens.txt` has to be there too, unless `tokenizer.json` names the visual codes itself.
        Raises UserError if a file is missing or malformed, two files name different numbers of codes, or special
        tokens have other ids than the layout gives them.
        """
        folder = local_folder(name, SMALL_FILES)
        if (folder / TOKENIZER_FILE).is_file():
            return cls._from_tokenizer_json(folder)
        codebook_size = read_vision_file(folder / VISION_FILE)
        if (folder / RANK_FILE).is_file():
            return cls.from_rank_file(folder / RANK_FILE, codebook_size)
        raise UserError(f"{folder} has neither {TOKENIZER_FILE} nor {RANK_FILE}: it holds no text tokenizer")

    @classmethod
    def _from_tokenizer_json(cls, folder: Path) -> TextTokenizer:
        saved = read_tokenizer_json(folder / TOKENIZER_FILE)
        if saved.codebook_size and not (folder / VISION_FILE).is_file():
            return cls(saved.bpe, saved.codebook_size)
        listed = read_vision_file(folder / VISION_FILE)
        if saved.codebook_size not in (0, listed):
            raise UserError(
                f"{folder}: {TOKENIZER_FILE} names {saved.codebook_size} visual codes, {VISION_FILE} names {listed}"
            )
        return cls(saved.bpe, listed)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the tokenizer's files into `folder`, each whole or not at all; other files there are kept.

        `emu3.tiktoken` and `emu3_vision_tokens.txt` are the published ones, the rest is what `AutoTokenizer` loads.
        """
        forms = self.layout.special_forms()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=self._with_specials,
            bos_token=forms[self.layout.bos - self.layout.pad],
            eos_token=forms[self.layout.eos - self.layout.pad],
            pad_token=forms[0],
        )
        with tempfile.TemporaryDirectory() as temporary:
            written = Path(temporary)
            fast.save_pretrained(written)
            write_ranks(written / RANK_FILE, _tokens(self._text))
            write_vision_file(written / VISION_FILE, self.layout)
            for file in written.iterdir():
                with whole_file(Path(folder) / file.name) as place:
                    place.write_bytes(file.read_bytes())

    def encode(self, text: str) -> list[int]:
        """Ids of `text` after NFC. A special token's surface form stays ordinary text; nothing is added."""
        return self._text.encode(_composed(text)).ids

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of `text` after NFC, in which the surface form of a special token becomes its id."""
        return self._with_specials.encode(_composed(text)).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the text ids in `ids`; special tokens and visual codes are left out.

        Bytes that are not UTF-8 (a character cut in two) become U+FFFD.
        """
        return self._text.decode([token for token in ids if token < self.layout.text_ranks])

    def size_ids(self, height: int, width: int) -> tuple[int, ...]:
        """Ids of the text "height*width" (in codes), which opens an image block."""
        return tuple(self.encode(f"{height}*{width}"))


def train_ranks(texts: Iterable[str], ranks: int, path: Path | str) -> int:
    """Train byte-level BPE on `texts`, write it as a tiktoken rank file, return the number of ranks written.

    ranks: at most this many, of which 256 are the single bytes; fewer once no pair of the texts occurs twice.
    The same texts give the same file. Raises UserError if `ranks` is below 256.
    """
    if ranks < 256:
        raise UserError(f"{ranks} text ranks are too few: the 256 single bytes are ranks as well")
    trainer = trainers.BpeTrainer(vocab_size=ranks, min_frequency=2, initial_alphabet=list(_BYTES), show_progress=False)
    tokenizer = _pipeline(models.BPE())
    tokenizer.train_from_iterator(texts, trainer)
    with whole_file(Path(path)) as temporary:
        write_ranks(temporary, _tokens(tokenizer))
    return tokenizer.get_vocab_size()


def _pipeline(bpe: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _composed(text: str) -> str:
    # The pipelines' own NFC follows an older Unicode, which leaves the marks added since out of order.
    return unicodedata.normalize("NFC", text)


def _name(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _tokens(tokenizer: Tokenizer) -> list[bytes]:
    """The tokens' bytes in the order of their ids."""
    ids = tokenizer.get_vocab()
    return [bytes(_BYTES[character] for character in name) for name in sorted(ids, key=ids.__getitem__)]


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


def tokenizer_digest(name: Path | str) -> str:
    """SHA-256 of the file that `TextTokenizer.from_pretrained` reads texts by, as 64 hex digits."""
    folder = local_folder(name, SMALL_FILES)
    return sha256_of(folder / (TOKENIZER_FILE if (folder / TOKENIZER_FILE).is_file() else RANK_FILE))


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
