"""The editor finds its three parts: beside each other, apart, inside one converted checkpoint, or on the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_cache import cached
from huggingface_hub import constants
from PIL import Image
from transformers import Emu3Config, Emu3ForCausalLM, Emu3ForConditionalGeneration

from emu3.errors import UserError
from emu3.hub import SMALL_FILES, local_folder
from emu3.mllm.editor import Editor
from emu3.mllm.text_tokenizer import TextTokenizer

TOKENIZER_PARTS = ("emu3.tiktoken", "emu3_vision_tokens.txt", "tokenizer.json", "tokenizer_config.json")


def edits(editor: Editor) -> list[bytes]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    [group] = editor.edit([image], ["make the sky purple"], n=2, image_area=24 * 24)
    return [edit.image.tobytes() for edit in group]


@pytest.fixture
def bare(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint as fine-tuning publishes it: weights and config alone."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_model_folder, folder, ignore=shutil.ignore_patterns(*TOKENIZER_PARTS, "special_tokens_map*"))
    return folder


@pytest.fixture
def together(tiny_model_folder: Path, tiny_vision_folder: Path) -> list[bytes]:
    return edits(Editor.from_pretrained(tiny_model_folder, tiny_vision_folder, device="cpu"))


def test_a_tokenizer_of_its_own(
    bare: Path, tiny_model_folder: Path, tiny_vision_folder: Path, together: list[bytes]
) -> None:
    apart = Editor.from_pretrained(bare, tiny_vision_folder, tokenizer=tiny_model_folder, device="cpu")
    assert edits(apart) == together


def test_hub_ids(
    bare: Path,
    tiny_model_folder: Path,
    tiny_vision_folder: Path,
    together: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Offline, from a cache. Guards the revision, and 17 GB of weights fetched for a rank file."""
    asked = []

    def noted(name: str, allow: Sequence[str]) -> Path:
        asked.append((name, allow))
        return local_folder(name, allow)

    for module in ("editor", "text_tokenizer"):
        monkeypatch.setattr(f"emu3.mllm.{module}.local_folder", noted)
    (tmp_path / "ranks").mkdir()
    for name in TOKENIZER_PARTS:
        shutil.copyfile(tiny_model_folder / name, tmp_path / "ranks" / name)
    cached(bare, tmp_path / "cache", "lab/earl", "v1")
    cached(tmp_path / "ranks", tmp_path / "cache", "lab/text")
    cached(tiny_vision_folder, tmp_path / "cache", "lab/vision")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    editor = Editor.from_pretrained("lab/earl@v1", "lab/vision", tokenizer="lab/text", device="cpu")
    assert edits(editor) == together
    assert asked == [("lab/earl@v1", SMALL_FILES), ("lab/text", SMALL_FILES)]
    with pytest.raises(UserError, match="lab/other is not whole in the cache"):
        Editor.from_pretrained("lab/earl@v1", "lab/vision", tokenizer="lab/other")


def test_one_converted_checkpoint_holds_all(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The reference has the same parts, each saved alone by its own class."""
    tokenizer = TextTokenizer.from_pretrained(tiny_model_folder)
    model = Emu3ForCausalLM.from_pretrained(tiny_model_folder)
    image: dict[str, Any] = {
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "hidden_size": 32,
        "codebook_size": tokenizer.layout.codebook_size,
    }
    torch.manual_seed(0)
    whole = Emu3ForConditionalGeneration(
        Emu3Config(text_config=model.config.to_dict(), vq_config=image, vocabulary_map={})
    ).eval()
    whole.model.text_model.load_state_dict(model.model.state_dict())
    whole.lm_head.load_state_dict(model.lm_head.state_dict())
    whole.save_pretrained(tmp_path / "whole", max_shard_size="1MB")
    tokenizer.save_pretrained(tmp_path / "whole")
    whole.model.vqmodel.save_pretrained(tmp_path / "vision")
    inside = Editor.from_pretrained(tmp_path / "whole", device="cpu")
    assert edits(inside) == edits(Editor.from_pretrained(tiny_model_folder, tmp_path / "vision", device="cpu"))


def test_parts_that_are_nowhere(bare: Path, tiny_model_folder: Path, tiny_vision_folder: Path) -> None:
    """Guards the advice: the published fine-tuned checkpoints lack both."""
    with pytest.raises(UserError, match="bare holds no text tokenizer: name one as `tokenizer`, such as BAAI/Emu3-Gen"):
        Editor.from_pretrained(bare, tiny_vision_folder)
    with pytest.raises(UserError, match="no vision tokenizer: name one as `vision`, such as BAAI/Emu3-VisionTokenizer"):
        Editor.from_pretrained(tiny_model_folder)


def test_what_is_wrong_is_told_before_the_weights_are_read(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emu3.mllm.editor.load_for_editing", lambda *_: pytest.fail("weights were read"))
    for vision, tokenizer in ((tmp_path, None), ("no/where/here", None), (None, tmp_path)):
        with pytest.raises(UserError):
            Editor.from_pretrained(tiny_model_folder, vision, tokenizer)


@pytest.mark.parametrize("device", ["banana", "cpu:x", "cuda:99"])
def test_a_device_that_is_not_there(tiny_model_folder: Path, tiny_vision_folder: Path, device: str) -> None:
    with pytest.raises(UserError, match=f"device {device} cannot be used: ") as caught:
        Editor.from_pretrained(tiny_model_folder, tiny_vision_folder, device=device)
    assert "\n" not in str(caught.value)


def test_dtype_is_the_language_model_s(tiny_model_folder: Path, tiny_vision_folder: Path) -> None:
    """Guards the vision tokenizer, whose codes differ in bfloat16."""
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        editor = Editor.from_pretrained(tiny_model_folder, tiny_vision_folder, device="cpu", dtype=dtype)
        assert editor.model.dtype == expected
        assert {parameter.dtype for parameter in editor.codec.vq.parameters()} == {torch.float32}
