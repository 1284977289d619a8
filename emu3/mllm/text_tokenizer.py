"""Instructions and reasoning to token ids and back; visual codes never pass through here.

Emu3 writes text in Qwen's byte-level BPE, published as a tiktoken rank file. The same ids come from a `tokenizers` BPE,
which any `AutoTokenizer` loads without the checkpoint's remote code. A release that transformers has converted holds
that BPE already (`emu3.mllm.vocabulary_files` reads both).

Two pipelines share that BPE. One knows no special token, so `<|image start|>` typed by a person stays text. The
other has the special tokens added; it is the one that is saved, and it serves `encode_with_specials`. The visual
codes are in neither: their ids are arithmetic (`emu3.mllm.layout`), and files only give their number.
"""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from emu3.errors import UserError
from emu3.files import whole_file
from emu3.hub import SMALL_FILES, local_folder
from emu3.mllm.layout import TokenLayout
from emu3.mllm.vocabulary_files import (
    merges_of,
    read_ranks,
    read_tokenizer_json,
    read_vision_file,
    write_ranks,
    write_vision_file,
)

RANK_FILE = "emu3.tiktoken"
VISION_FILE = "emu3_vision_tokens.txt"
TOKENIZER_FILE = "tokenizer.json"

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
