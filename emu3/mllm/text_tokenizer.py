"""Instructions and reasoning to token ids and back; visual codes never pass through here.

Emu3 writes text in Qwen's byte-level BPE, published as a tiktoken rank file (`emu3.mllm.rank_file`). The same ids
come from a `tokenizers` BPE, which any `AutoTokenizer` loads without the checkpoint's remote code.

Two pipelines share that BPE. One knows no special token, so `<|image start|>` typed by a person stays text. The
other has the special tokens added; it is the one that is saved, and it serves `encode_with_specials`. The visual
codes are in neither: their ids are arithmetic (`emu3.mllm.layout`), and `emu3_vision_tokens.txt` only tells how
many there are.
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
from emu3.mllm.layout import TokenLayout
from emu3.mllm.rank_file import merges_of, read_ranks, write_ranks

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
    def from_pretrained(cls, folder: Path | str) -> TextTokenizer:
        """Load from a folder with `emu3_vision_tokens.txt` and `tokenizer.json` or else, slower, `emu3.tiktoken`.

        Raises UserError if a file is missing or malformed, or gives special tokens other ids than the layout does.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"tokenizer folder {folder} does not exist")
        codebook_size = _read_codebook_size(folder / VISION_FILE)
        if (folder / TOKENIZER_FILE).is_file():
            return cls._from_tokenizer_json(folder / TOKENIZER_FILE, codebook_size)
        if (folder / RANK_FILE).is_file():
            return cls.from_rank_file(folder / RANK_FILE, codebook_size)
        raise UserError(f"{folder} has neither {TOKENIZER_FILE} nor {RANK_FILE}: it holds no text tokenizer")

    @classmethod
    def _from_tokenizer_json(cls, path: Path, codebook_size: int) -> TextTokenizer:
        try:
            saved = Tokenizer.from_file(str(path))
        except Exception as error:  # the bindings raise no narrower class
            raise UserError(f"{path} is not a tokenizer: {error}") from None
        if not isinstance(saved.model, models.BPE):
            raise UserError(f"{path} is not an Emu3 tokenizer: its model is {type(saved.model).__name__}, not BPE")
        tokenizer = cls(saved.model, codebook_size)
        for token, form in enumerate(tokenizer.layout.special_forms(), start=tokenizer.layout.pad):
            if saved.token_to_id(form) != token:
                raise UserError(f"{path} gives {form} the id {saved.token_to_id(form)}, the Emu3 layout wants {token}")
        return tokenizer

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
            (written / VISION_FILE).write_text("\n".join(_vision_forms(self.layout)) + "\n", encoding="utf-8")
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


def _vision_forms(layout: TokenLayout) -> list[str]:
    """Lines of `emu3_vision_tokens.txt`: the three image marks, then a name for each visual code."""
    return [*layout.special_forms()[-3:], *(f"<|visual token {code:06d}|>" for code in range(layout.codebook_size))]


def _read_codebook_size(path: Path) -> int:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the folder holds no Emu3 tokenizer") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    codebook_size = len(lines) - 3
    expected = _vision_forms(TokenLayout(codebook_size=codebook_size))
    for number, (line, form) in enumerate(zip(lines, expected, strict=False), start=1):
        if line != form:
            raise UserError(f"{path}, line {number}: expected {form}, found {line[:40]!r}")
    if codebook_size < 1:
        raise UserError(f"{path} names no visual code")
    return codebook_size
