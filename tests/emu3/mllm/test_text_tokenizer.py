"""Text ids have to be tiktoken's, on which the published models were trained; tiktoken itself is the reference."""

import base64
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiktoken_reference import assert_same_ids, reference
from transformers import AutoTokenizer

from emu3.errors import UserError
from emu3.mllm.sequence import edit_prompt
from emu3.mllm.text_tokenizer import TextTokenizer, read_ranks, train_ranks, write_ranks

CODEBOOK = 16
CORPUS = [
    "Make the small circle red. It's the one near the 2 squares!",
    "Remove the blue triangle, then don't move the others.",
    "Die Fläche wird grün; het vlak wordt blauw\n\nadd a yellow square   at the top-left",
] * 3
TEXTS = [
    "",
    "32*32",
    "Make it RED, please!! It'S 12345 o'clock",
    "  two  spaces   and\ttabs \n\n\r\n new lines  ",
    "naïve cafe\u0301 \u1e9b\u0323 Ω Å ｆｕｌｌ 漢字 かな 한글 \u1112\u1161\u11ab العربية हिन्दी",
    "🎨🖌️👩‍👩‍👧‍👦 emoji, zero\u200bwidth, nbsp\u00a0here, \u2028 line",
    "<|image start|>3*3<|image token|><|visual token 000001|><|extra_200|>",
    "<|endoftext|> <|im_end|>\u0338 <|extra_205|>",
    " Let's think step by step. <|start thinking|> a: b<|end thinking|>",
    "a" * 300 + "é" * 50,
]


@pytest.fixture(scope="module")
def rank_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "tiny.tiktoken"
    train_ranks(CORPUS, 400, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(rank_file: Path) -> TextTokenizer:
    return TextTokenizer.from_rank_file(rank_file, CODEBOOK)


@pytest.fixture
def saved(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_tiktoken(rank_file: Path, tokenizer: TextTokenizer, text: str) -> None:
    assert_same_ids(tokenizer, reference(rank_file, tokenizer), text)


def test_ids_equal_tiktoken_on_random_rank_files(tmp_path: Path) -> None:
    """Ranks in any order, several ways to build a token, tokens that no merge reaches: one merge per rank suffices."""
    draw = random.Random(0)
    differing = 0
    for case in range(60):
        tokens = {"".join(draw.choices("abc", k=draw.randint(2, 6))) for _ in range(40)}
        order = [*(bytes([byte]) for byte in range(256)), *(token.encode() for token in sorted(tokens))]
        draw.shuffle(order)
        path = tmp_path / f"{case}.tiktoken"
        write_ranks(path, order)
        tokenizer = TextTokenizer.from_rank_file(path, CODEBOOK)
        encoding = reference(path, tokenizer)
        for _ in range(40):
            text = "".join(draw.choices("abc", k=draw.randint(1, 30)))
            assert_same_ids(tokenizer, encoding, text)
            differing += len(tokenizer.encode(text)) < len(text)
    assert differing > 1_000  # the rank files did merge something


def test_a_rank_that_no_merge_reaches_stands_for_a_whole_piece_only(tmp_path: Path) -> None:
    """tiktoken looks a whole piece up before it merges; without that rule "abcd" has four ids here."""
    path = tmp_path / "ranks.tiktoken"
    write_ranks(path, [*(bytes([byte]) for byte in range(256)), b"bc", b"abcd"])
    tokenizer = TextTokenizer.from_rank_file(path, CODEBOOK)
    assert tokenizer.encode("abcd") == [257]
    assert tokenizer.encode("abcde") == [ord("a"), 256, ord("d"), ord("e")]


def test_the_pieces_are_those_of_the_published_pattern(tmp_path: Path) -> None:
    """With a rank for every run of these characters, the ids show where the text is cut, and nothing else."""
    path, draw = tmp_path / "ranks.tiktoken", random.Random(0)
    runs = {"".join(draw.choices("aS1' .\n", k=draw.randint(2, 4))).encode() for _ in range(2_000)}
    write_ranks(path, [*(bytes([byte]) for byte in range(256)), *sorted(runs)])
    tokenizer = TextTokenizer.from_rank_file(path, CODEBOOK)
    encoding = reference(path, tokenizer)
    for _ in range(500):
        assert_same_ids(tokenizer, encoding, "".join(draw.choices("aS1' .\n", k=20)))
    assert len(tokenizer.size_ids(11, 11)) == 5  # each digit is a piece of its own


def test_marks_that_are_newer_than_the_backend_are_put_in_order(tokenizer: TextTokenizer) -> None:
    """U+08CE came with Unicode 14; Python sorts it behind U+05B0, the backend's own NFC does not."""
    assert tokenizer.encode("x\u08ce\u05b0") == tokenizer.encode("x\u05b0\u08ce")


def test_special_forms_in_an_instruction_stay_text(tokenizer: TextTokenizer) -> None:
    """An instruction that spells `<|image start|>` must not open an image block."""
    for token, form in enumerate(tokenizer.layout.special_forms(), start=tokenizer.layout.pad):
        assert all(part < tokenizer.layout.text_ranks for part in tokenizer.encode(f"a{form}b"))
        assert tokenizer.encode_with_specials(f"a{form}b") == [*tokenizer.encode("a"), token, *tokenizer.encode("b")]


@pytest.mark.parametrize(
    "form", ["<|image start|>", "<|extra_204|>", "<|extra_200|>", "<|endoftext|>", "<|visual token 000001|>"]
)
def test_a_prompt_has_special_tokens_only_around_the_image(tokenizer: TextTokenizer, form: str) -> None:
    """An instruction that spells a special token could end the prompt or draw into it."""
    source = np.array([[0, 1], [2, 3]])
    plain, spelled = (edit_prompt(tokenizer, source, text) for text in ("", f"add {form} here"))
    assert spelled[: len(plain)] == plain
    instruction = spelled[len(plain) :]
    assert max(instruction) < tokenizer.layout.text_ranks
    assert tokenizer.decode(instruction) == f"add {form} here"


def test_visual_codes_have_no_surface_form(tokenizer: TextTokenizer) -> None:
    assert max(tokenizer.encode_with_specials("<|visual token 000001|>")) < tokenizer.layout.text_ranks


def test_decode_leaves_out_what_is_not_text(tokenizer: TextTokenizer) -> None:
    layout = tokenizer.layout
    ids = tokenizer.encode("a red circle")
    noise = [layout.pad, layout.bos, layout.boi, layout.first_code, layout.vocab_size - 1]
    assert tokenizer.decode([*noise, *ids[:2], *noise, *ids[2:], *noise]) == "a red circle"


def test_decode_of_half_a_character(tokenizer: TextTokenizer) -> None:
    """Thinking may be cut off anywhere; that is a replacement character, not an exception."""
    assert tokenizer.decode(tokenizer.encode("x漢")[:-1]).startswith("x\ufffd")


def test_size_ids(tokenizer: TextTokenizer) -> None:
    """Height first: a 4x6 image announced as 6*4 is drawn sheared."""
    assert tokenizer.decode(tokenizer.size_ids(4, 6)) == "4*6"
    assert tokenizer.size_ids(4, 6) == tuple(tokenizer.encode("4*6"))


def test_saved_files(rank_file: Path, tokenizer: TextTokenizer, saved: Path) -> None:
    names = {file.name for file in saved.iterdir()}
    assert names == {"emu3.tiktoken", "emu3_vision_tokens.txt", "tokenizer.json", "tokenizer_config.json"}
    assert (saved / "emu3.tiktoken").read_bytes() == rank_file.read_bytes()
    lines = (saved / "emu3_vision_tokens.txt").read_text().splitlines()
    assert lines[:4] == ["<|image token|>", "<|image start|>", "<|image end|>", "<|visual token 000000|>"]
    assert lines[-1] == "<|visual token 000015|>"


def test_saving_keeps_other_files(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """The tokenizer is saved beside weights; replacing the folder would delete them."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("without", [[], ["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_loaded_tokenizer_gives_the_same_ids(tokenizer: TextTokenizer, saved: Path, without: list[str]) -> None:
    """Both ways to load: the fast file, and the published files alone."""
    for name in without:
        (saved / name).unlink()
    loaded = TextTokenizer.from_pretrained(saved)
    assert loaded.layout == tokenizer.layout
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.encode_with_specials(text) == tokenizer.encode_with_specials(text)


def test_auto_tokenizer_loads_the_folder(tokenizer: TextTokenizer, saved: Path) -> None:
    """Servers load it so; the tokenizer adds no bos by itself."""
    auto, layout = AutoTokenizer.from_pretrained(saved), tokenizer.layout
    assert (auto.pad_token_id, auto.bos_token_id, auto.eos_token_id) == (layout.pad, layout.bos, layout.eos)
    for text in TEXTS:
        assert auto(text).input_ids == tokenizer.encode_with_specials(text)


def test_pickled_tokenizer_gives_the_same_ids(tokenizer: TextTokenizer) -> None:
    """Data loader workers that are spawned get it this way."""
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_train_ranks_is_reproducible_and_bounded(tmp_path: Path) -> None:
    paths = [tmp_path / "a.tiktoken", tmp_path / "b.tiktoken"]
    counts = [train_ranks(CORPUS, 300, path) for path in paths]
    assert counts == [300, 300]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(read_ranks(paths[0])) == 300
    assert train_ranks(["ab"], 300, paths[1]) == len(read_ranks(paths[1])) == 256


def test_train_ranks_learns_the_words(rank_file: Path, tokenizer: TextTokenizer) -> None:
    assert len(tokenizer.encode("the circle")) < len("the circle") / 2


def test_too_few_ranks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="256 single bytes"):
        train_ranks(CORPUS, 255, tmp_path / "few.tiktoken")


def test_lines_of_a_rank_file_in_another_order(rank_file: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """The rank is what the line says, not where it stands."""
    path = tmp_path / "reversed.tiktoken"
    path.write_bytes(b"\n".join(reversed(rank_file.read_bytes().splitlines())))
    assert [TextTokenizer.from_rank_file(path, CODEBOOK).encode(text) for text in CORPUS] == [
        tokenizer.encode(text) for text in CORPUS
    ]


BYTES = [base64.b64encode(bytes([byte])).decode() + f" {byte}" for byte in range(256)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*BYTES, "!!!! 256"], "line 257"),
        ([*BYTES, "YWI="], "line 257"),
        ([*BYTES, "YWI= x"], "line 257"),
        ([*BYTES, "YWI= 257"], "without a gap"),
        ([*BYTES, "YWI= 255"], "twice"),
        ([*BYTES, "YQ== 256"], "twice"),
        (BYTES[:-1], "single byte"),
        ([], "single byte"),
    ],
)
def test_malformed_rank_files(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "bad.tiktoken"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        TextTokenizer.from_rank_file(path, CODEBOOK)


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        TextTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nothing\.tiktoken does not exist"):
        TextTokenizer.from_rank_file(tmp_path / "nothing.tiktoken", CODEBOOK)
    shutil.copytree(saved, tmp_path / "no_text")
    for name in ("tokenizer.json", "emu3.tiktoken"):
        (tmp_path / "no_text" / name).unlink()
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor emu3\.tiktoken"):
        TextTokenizer.from_pretrained(tmp_path / "no_text")
    (saved / "emu3_vision_tokens.txt").unlink()
    with pytest.raises(UserError, match=r"emu3_vision_tokens\.txt does not exist"):
        TextTokenizer.from_pretrained(saved)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<|visual token 000003|>\n", "", r"line 7: expected <\|visual token 000003\|>"),
        ("<|image start|>", "<|image begin|>", "line 2"),
        ("<|image token|>\n<|image start|>", "<|image start|>\n<|image token|>", "line 1"),
    ],
)
def test_a_vision_token_file_in_another_order_is_refused(saved: Path, old: str, new: str, message: str) -> None:
    path = saved / "emu3_vision_tokens.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        TextTokenizer.from_pretrained(saved)


def test_a_vision_token_file_without_codes_is_refused(saved: Path) -> None:
    path = saved / "emu3_vision_tokens.txt"
    path.write_text("<|image token|>\n<|image start|>\n<|image end|>\n")
    with pytest.raises(UserError, match="names no visual code"):
        TextTokenizer.from_pretrained(saved)
