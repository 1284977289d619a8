"""A release that transformers has converted holds its tokenizer in `tokenizer.json` alone; the ids stay the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from many_scripts import sample
from tiktoken_reference import assert_same_ids, qwen_rank_file, reference
from transformers.convert_slow_tokenizer import bytes_to_unicode

from emu3.errors import UserError
from emu3.mllm.text_tokenizer import TextTokenizer, read_ranks, train_ranks, write_ranks

CODEBOOK = 16
CHARACTERS = bytes_to_unicode()


@pytest.fixture(scope="module")
def rank_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "tiny.tiktoken"
    train_ranks(sample(10_000, seed=3).splitlines(), 700, path)
    return path


@pytest.fixture
def converted(rank_file: Path, tmp_path: Path) -> Path:
    write_converted(tmp_path / "tokenizer.json", rank_file, CODEBOOK)
    return tmp_path


def write_converted(path: Path, rank_file: Path, codebook_size: int) -> None:
    """What transformers' conversion writes: specials in the vocabulary too, merges as text, GPT-2's pattern, no NFC."""
    ranks = read_ranks(rank_file)
    forms = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", *(f"<|extra_{i}|>" for i in range(1, 205))]
    forms += ["<|image token|>", "<|image start|>", "<|image end|>"]
    forms += [f"<|visual token {code:06d}|>" for code in range(codebook_size)]
    specials = {form: len(ranks) + place for place, form in enumerate(forms)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": form, **flags} for form, token in specials.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {name(token): rank for token, rank in ranks.items()} | specials,
            "merges": [" ".join(map(name, halves(token, ranks))) for token in ranks if len(token) > 1],
        },
    }
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def name(token: bytes) -> str:
    return "".join(CHARACTERS[byte] for byte in token)


def halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that merging by rank leaves of `token` when its own rank is not there yet."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        parts[best : best + 2] = [pairs[best]]
    return parts


def edit_json(folder: Path, change: Any) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def test_ids_equal_tiktoken(converted: Path, rank_file: Path) -> None:
    """Loaded as it is, the file cuts "doesn't12" by another pattern and leaves "e\u0301" in two."""
    tokenizer = TextTokenizer.from_pretrained(converted)
    assert tokenizer.layout == TextTokenizer.from_rank_file(rank_file, CODEBOOK).layout
    encoding = reference(rank_file, tokenizer)
    for text in [
        "doesn't12 IT'S cafe\u0301\n\n x",
        "<|image start|>2*2 <|extra_1|> <image>",
        *sample(5_000, 4).split("\n"),
    ]:
        assert_same_ids(tokenizer, encoding, text)


def test_saved_again_it_is_the_published_files(converted: Path, rank_file: Path, tmp_path: Path) -> None:
    TextTokenizer.from_pretrained(converted).save_pretrained(tmp_path / "saved")
    TextTokenizer.from_rank_file(rank_file, CODEBOOK).save_pretrained(tmp_path / "direct")
    for file in ("emu3.tiktoken", "emu3_vision_tokens.txt"):
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes()


def test_merges_as_pairs(converted: Path, rank_file: Path) -> None:
    """Newer versions of `tokenizers` write a merge as a list of two."""

    def change(value: Any) -> None:
        value["model"]["merges"] = [merge.split(" ") for merge in value["model"]["merges"]]

    edit_json(converted, change)
    text = sample(2_000, 5)
    expected = TextTokenizer.from_rank_file(rank_file, CODEBOOK).encode(text)
    assert TextTokenizer.from_pretrained(converted).encode(text) == expected


def test_a_rank_that_no_merge_reaches_stands_for_a_whole_piece(tmp_path: Path) -> None:
    """The file's own BPE merges first; tiktoken looks the whole piece up first."""
    lines = [*(bytes([byte]) for byte in range(256)), b"bc", b"abcd"]
    write_ranks(tmp_path / "r.tiktoken", lines)
    write_converted(tmp_path / "tokenizer.json", tmp_path / "r.tiktoken", CODEBOOK)
    edit_json(tmp_path, lambda value: value["model"]["merges"].pop())
    assert TextTokenizer.from_pretrained(tmp_path).encode("abcd") == [257]


def test_a_vision_token_file_that_disagrees_is_refused(converted: Path, rank_file: Path) -> None:
    """Files of two models in one folder."""
    TextTokenizer.from_rank_file(rank_file, CODEBOOK).save_pretrained(converted / "same")
    TextTokenizer.from_rank_file(rank_file, CODEBOOK - 1).save_pretrained(converted / "other")
    listed = converted / "emu3_vision_tokens.txt"
    listed.write_bytes((converted / "same" / listed.name).read_bytes())
    assert TextTokenizer.from_pretrained(converted).layout.codebook_size == CODEBOOK
    listed.write_bytes((converted / "other" / listed.name).read_bytes())
    with pytest.raises(UserError, match=r"names 16 visual codes, emu3_vision_tokens\.txt names 15"):
        TextTokenizer.from_pretrained(converted)


def rename(value: Any, old: str, new: str) -> None:
    for token in value["added_tokens"]:
        if token["content"] == old:
            token["content"] = new


def drop_special(value: Any, form: str) -> None:
    """Without the token, with all ids behind it one lower: every code would be another."""
    [gone] = [token["id"] for token in value["added_tokens"] if token["content"] == form]
    value["added_tokens"] = [token for token in value["added_tokens"] if token["id"] != gone]
    for token in value["added_tokens"]:
        token["id"] -= token["id"] > gone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: rename(value, "<|extra_201|>", "<eof>"), r"gives <\|extra_201\|> the id None"),
        (lambda value: drop_special(value, "<|extra_7|>"), r"gives <\|extra_200\|> the id 902"),
        (lambda value: rename(value, "<|visual token 000003|>", "<|visual token 000099|>"), "visual codes"),
        (lambda value: rename(value, "<|endoftext|>", "</s>"), r"no <\|endoftext\|>"),
        (lambda value: value["model"]["vocab"].pop("a"), "ids 0 to 699"),
        (lambda value: value["model"]["merges"].append("nowhere never"), "out of vocabulary"),
        (lambda value: value["model"]["merges"].append("a b c"), "not an Emu3 tokenizer"),
        (lambda value: value["model"].update(type="Unigram"), "Unigram, not BPE"),
        (lambda value: value.pop("model"), "not a tokenizer of the library"),
        (lambda value: value.update(added_tokens=[1]), "not a tokenizer of the library"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(converted: Path, change: Any, message: str) -> None:
    edit_json(converted, change)
    with pytest.raises(UserError, match=message):
        TextTokenizer.from_pretrained(converted)


def test_a_damaged_file_is_refused(converted: Path) -> None:
    path = converted / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"tokenizer\.json is not JSON"):
        TextTokenizer.from_pretrained(converted)


@pytest.mark.skipif(qwen_rank_file() is None, reason="needs QWEN_RANK_FILE or the package dashscope")
def test_the_published_size(tmp_path: Path) -> None:
    path = qwen_rank_file()
    assert path is not None
    write_converted(tmp_path / "tokenizer.json", path, 32_768)
    tokenizer = TextTokenizer.from_pretrained(tmp_path)
    assert tokenizer.layout.vocab_size == 184_622
    encoding = reference(path, tokenizer)
    assert_same_ids(tokenizer, encoding, sample(20_000, 6))
