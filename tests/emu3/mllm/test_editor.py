"""The editor against the same steps done by hand, and its errors."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emu3.errors import UserError
from emu3.mllm import editor as editor_module
from emu3.mllm.editor import EditedImage, Editor
from emu3.mllm.generate import Request, generate
from emu3.mllm.sequence import THINK_PREFILL, edit_prompt
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.codec import ImageCodec
from emu3.tokenizer.images import fit_image, scale_image
from emu3.tokenizer.model import StillVQ

AREA = 24 * 24


@pytest.fixture(scope="module")
def editor(tiny_model_folder: Path, tiny_vision_folder: Path) -> Editor:
    """In float64, so that a sum in another order changes no sample."""
    editor = Editor.from_pretrained(tiny_model_folder, tiny_vision_folder, device="cpu")
    editor.model.double()
    return editor


def photo(seed: int, width: int = 30, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(edits: list[list[EditedImage]]) -> list[list[bytes]]:
    return [[edit.image.tobytes() for edit in group] for group in edits]


def test_equals_the_steps_by_hand(editor: Editor) -> None:
    """Guards the chain: source, instruction and seed of one image must not reach another one's sample."""
    images, instructions = [photo(0), photo(1, 48, 16)], ["make the sky purple", "remove it"]
    edits = editor.edit(images, instructions, n=2, temperature=0.9, top_k=9, seed=4, image_area=AREA)
    for index, (image, instruction) in enumerate(zip(images, instructions, strict=True)):
        [codes] = editor.codec.encode([scale_image(image, AREA, 8)])
        grammar = editor_module.grid_grammar(editor.tokenizer, *codes.shape)
        prompt = tuple(edit_prompt(editor.tokenizer, codes, instruction))
        wanted = Request(prompt, grammar, ((4, index, 0), (4, index, 1)))
        [samples] = generate(editor.model, editor.tokenizer.layout, [wanted], temperature=0.9, top_k=9)
        by_hand = editor.codec.decode([sample.codes for sample in samples])
        assert [edit.image.tobytes() for edit in edits[index]] == [image.tobytes() for image in by_hand]
        size = fit_image(image, AREA, 8).size
        assert all(edit.image.size == size and edit.reasoning is None for edit in edits[index])


def test_the_seed_decides(editor: Editor) -> None:
    """Guards determinism, and against an `n` that gives the same image n times."""
    first = editor.edit([photo(0)], ["a"], n=3, seed=1, image_area=AREA)
    assert pixels(first) == pixels(editor.edit([photo(0)], ["a"], n=3, seed=1, image_area=AREA))
    assert pixels(first) != pixels(editor.edit([photo(0)], ["a"], n=3, seed=2, image_area=AREA))
    assert len(set(pixels(first)[0])) == 3


def test_many_images_go_in_portions(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the memory bound, and that it changes no image."""
    images, instructions = [photo(seed) for seed in range(5)], list("abcde")
    at_once = editor.edit(images, instructions, n=2, image_area=AREA)
    sizes = []

    def counted(model: Any, layout: Any, requests: list[Request], **settings: Any) -> Any:
        sizes.append(len(requests))
        return generate(model, layout, requests, **settings)

    monkeypatch.setattr(editor_module, "generate", counted)
    monkeypatch.setattr(editor_module, "SAMPLES_AT_ONCE", 4)
    assert pixels(editor.edit(images, instructions, n=2, image_area=AREA)) == pixels(at_once)
    assert sizes == [2, 2, 1]


def test_images_are_handed_over_as_they_come(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards an hour of edits from the error, or the person, that ends it."""
    happened: list[Any] = []

    def noted(model: Any, layout: Any, requests: list[Request], **settings: Any) -> Any:
        happened.append(f"sampled {len(requests)}")
        return generate(model, layout, requests, **settings)

    monkeypatch.setattr(editor_module, "generate", noted)
    monkeypatch.setattr(editor_module, "SAMPLES_AT_ONCE", 4)
    edits = editor.edit(
        [photo(seed) for seed in range(3)],
        list("abc"),
        n=2,
        image_area=AREA,
        ready=lambda index, group: happened.append((index, group)),
    )
    assert happened == ["sampled 2", (0, edits[0]), (1, edits[1]), "sampled 1", (2, edits[2])]


def test_thinking_gives_the_chain_of_thought(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the prefill, and the reasoning's end mark, which is no part of the text."""
    seen: list[Request] = []

    def prefilled(model: Any, layout: Any, requests: list[Request], **settings: Any) -> Any:
        seen.extend(requests)
        groups = generate(model, layout, requests, **settings)
        thought = editor.tokenizer.encode(" plan: sky<|end thinking|>")
        return [[type(sample)(sample.tokens, sample.logprobs, sample.codes, thought) for sample in groups[0]]]

    monkeypatch.setattr(editor_module, "generate", prefilled)
    [[edit]] = editor.edit([photo(0)], ["a"], think=True, image_area=AREA)
    assert edit.reasoning == "plan: sky"
    prefill = editor.tokenizer.encode(THINK_PREFILL)
    assert seen[0].think and list(seen[0].prompt[-len(prefill) :]) == prefill


def test_the_model_may_decide_whether_to_think(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the published mode `mixed`: nothing is put in the model's mouth, and its marks are no chain."""
    seen: list[Request] = []

    def written(model: Any, layout: Any, requests: list[Request], **settings: Any) -> Any:
        seen.extend(requests)
        plain = generate(model, layout, [replace(request, think=False) for request in requests])
        texts = ("", f"{THINK_PREFILL} plan: sky<|end thinking|>")
        return [
            [replace(sample, reasoning=editor.tokenizer.encode(text)) for sample in group]
            for group, text in zip(plain, texts, strict=True)
        ]

    monkeypatch.setattr(editor_module, "generate", written)
    edits = editor.edit([photo(0)] * 2, ["a", "a"], think="mixed", image_area=AREA)
    assert [edit.reasoning for [edit] in edits] == ["", "plan: sky"]
    [codes] = editor.codec.encode([scale_image(photo(0), AREA, 8)])
    assert [request.prompt for request in seen] == [tuple(edit_prompt(editor.tokenizer, codes, "a"))] * 2
    assert all(request.think for request in seen)


def test_long_chains_are_sampled_fewer_at_once(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the memory of keys and values, which a chain of 3,000 tokens takes four times of."""
    at_once: list[int] = []

    def counting(model: Any, layout: Any, requests: list[Request], **settings: Any) -> Any:
        at_once.append(len(requests))
        return generate(model, layout, [replace(request, think=False) for request in requests])

    monkeypatch.setattr(editor_module, "generate", counting)
    monkeypatch.setattr(editor_module, "SAMPLES_AT_ONCE", 6)
    for settings in ({"think": True}, {"think": True, "think_tokens": 8}, {}):
        editor.edit([photo(0)] * 6, "a", image_area=AREA, **settings)  # type: ignore[call-overload]
    assert at_once == [2, 2, 2, 6, 6]


def test_thinking_runs_to_the_end(editor: Editor) -> None:
    [[edit]] = editor.edit([photo(0)], ["a"], think=True, image_area=AREA)
    assert isinstance(edit.reasoning, str) and edit.image.size == (24, 24)


def test_no_images_no_edits(editor: Editor) -> None:
    assert editor.edit([], []) == []


def truncated() -> Image.Image:
    """An opened PNG whose pixels end too early; Pillow notices when they are first read."""
    file = io.BytesIO()
    photo(0, 64, 64).save(file, format="PNG")
    return Image.open(io.BytesIO(file.getvalue()[:2000]))


@pytest.mark.parametrize(
    ("bad", "instruction", "message"),
    [
        (photo(0), " ", "image 1: the instruction is empty"),
        (truncated(), "a", "image 1 cannot be read"),
        (photo(0, 400, 2), "a", "image 1: .*less than one cell"),
        (photo(0), "long " * 400, "image 1: .*do not fit the model's 1024 positions"),
    ],
    ids=["empty", "truncated", "thin", "long"],
)
def test_a_bad_request_is_told_before_anything_is_sampled(
    editor: Editor, monkeypatch: pytest.MonkeyPatch, bad: Image.Image, instruction: str, message: str
) -> None:
    """Guards one clear line that names the image, in place of a traceback an hour into a batch."""
    monkeypatch.setattr(editor_module, "generate", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(UserError, match=message):
        editor.edit([photo(0), bad], ["fine", instruction], image_area=AREA)


@pytest.mark.parametrize("settings", [{"n": 0}, {"seed": -1}, {"image_area": 0}, {"temperature": -1.0}, {"top_k": 0}])
def test_settings_out_of_range(editor: Editor, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        editor.edit([photo(0)], ["a"], **({"image_area": AREA} | settings))


def test_a_bad_request_is_told_before_an_engine_starts(editor: Editor) -> None:
    """Guards the minute and the memory that vLLM's start takes: a prompt that is too long is known without it. The
    engine starts with the first request that is right, and once."""
    started: list[object] = []

    class Engine:
        def sample(self, requests: list[Request], **settings: Any) -> Any:
            settings["think_tokens"] = 0
            return iter(generate(editor.model, editor.tokenizer.layout, requests, **settings))

    def start() -> Any:
        started.append(None)
        return Engine()

    lazy = Editor(editor.model, editor.tokenizer, editor.codec, start)
    for instruction, settings in (("long " * 400, {}), (" ", {}), ("a", {"temperature": -1.0}), ("a", {"top_k": 0})):
        with pytest.raises(UserError):
            lazy.edit([photo(0)], [instruction], image_area=AREA, **settings)  # type: ignore[arg-type]
    assert not started
    expected = pixels(editor.edit([photo(0)], ["a"], image_area=AREA))
    for _ in range(2):
        assert pixels(lazy.edit([photo(0)], ["a"], image_area=AREA, progress=True)) == expected
    assert len(started) == 1


def test_vllm_is_missed_before_the_model_is_read(
    tiny_model_folder: Path, tiny_vision_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(editor_module, "load_language_model", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match="vLLM is not installed"):
        Editor.from_pretrained(tiny_model_folder, tiny_vision_folder, device="cpu", engine="vllm")


def test_images_and_instructions_pair_up(editor: Editor) -> None:
    with pytest.raises(ValueError, match="2 images and 1 instructions"):
        editor.edit([photo(0), photo(1)], ["a"])


def test_parts_of_different_worlds_are_refused(editor: Editor) -> None:
    """Guards against codes of another codebook, which would decode to noise without an error."""
    other = StillVQConfig(
        base_channels=8, channel_multiplier=(1,), attn_resolutions=(), codebook_size=8, patch_size=8, norm="position"
    )
    with pytest.raises(UserError, match="8 codes"):
        Editor(editor.model, editor.tokenizer, ImageCodec(StillVQ(other)))
