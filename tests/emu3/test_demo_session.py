"""What the page's button does, without a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu3.demo.session import Comparison, Settings, edit_image
from emu3.errors import UserError
from emu3.mllm.editor import EditedImage, Editor

AREA = 576
SETTINGS = Settings(n=2, temperature=1.0, seed=3, think=False)


@pytest.fixture(scope="module")
def editor(tiny_model_folder: Path, tiny_vision_folder: Path) -> Editor:
    return Editor.from_pretrained(tiny_model_folder, tiny_vision_folder, image_area=AREA)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return str(path)


def ignore(done: int, most: int) -> None:
    pass


@pytest.mark.parametrize("think", [False, True])
def test_the_page_gives_the_editors_own_samples(editor: Editor, photo: str, think: bool) -> None:
    """Guards against a setting that is not passed on, and an image that is resized twice."""
    settings = replace(SETTINGS, think=think, temperature=0.7)
    result = edit_image(editor, photo, "a", settings, ignore)
    with Image.open(photo) as image:
        [edits] = editor.edit([image], ["a"], n=2, temperature=0.7, seed=3, think=think, image_area=AREA)
    assert result.source.size == (24, 16)
    assert [edit.image.tobytes() for edit in result.edits] == [edit.image.tobytes() for edit in edits]
    assert [edit.reasoning for edit in result.edits] == [edit.reasoning for edit in edits]
    assert (result.thought(0) is not None) == think


def test_an_edit_is_edited_as_it_is(editor: Editor, tmp_path: Path) -> None:
    """Guards an edit of an edit of an edit, which was scaled to the area and cropped to whole cells each time."""
    path = tmp_path / "edit.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)  # 384 of 576 pixels
    Image.fromarray(pixels).save(path)
    result = edit_image(editor, str(path), "a", SETTINGS, ignore)
    assert np.array_equal(np.asarray(result.source), pixels)
    [edits] = editor.edit([Image.fromarray(pixels)], ["a"], n=2, seed=3, image_area=384)
    assert [edit.image.tobytes() for edit in result.edits] == [edit.image.tobytes() for edit in edits]


def test_what_the_progress_raises_ends_the_edit(editor: Editor, photo: str) -> None:
    """Guards Stop: the model is free at its next token, and nobody listens to it any more."""
    seen = []

    def stop(done: int, most: int) -> None:
        seen.append(done)
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        edit_image(editor, photo, "a", SETTINGS, stop)
    assert seen == [1, 2] and not editor.model.model._forward_hooks


@pytest.mark.parametrize("think", [False, True])
def test_progress_counts_tokens(editor: Editor, photo: str, think: bool) -> None:
    """Guards against a bar that stands still, runs past its end, or never reaches it."""
    seen: list[tuple[int, int]] = []
    edit_image(editor, photo, "a", replace(SETTINGS, think=think), lambda done, most: seen.append((done, most)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {most for _, most in seen} == {6 + 3000 * think}
    assert len(seen) == 6 if not think else 6 < len(seen) <= 518


@pytest.mark.parametrize(
    ("image", "instruction", "changes", "message"),
    [
        (None, "a", {}, "There is no image yet"),
        ("photo.png", " \n", {}, "The instruction is empty"),
        ("photo.png", "a", {"seed": None}, "The seed is empty"),
        ("text.png", "a", {}, "The image cannot be read as an image"),
        ("cut.png", "a", {}, "The image cannot be read as an image"),
        ("thin.png", "a", {}, "A 900x1 image becomes"),
        ("photo.png", "b" * 2000, {}, "A prompt of 2"),
        ("photo.png", "a", {"temperature": -1.0}, "Temperature must be 0 or more"),
    ],
)
def test_bad_input_is_told(
    editor: Editor, photo: str, image: str | None, instruction: str, changes: dict[str, float | None], message: str
) -> None:
    """Guards against a bare "Error" on the page, and against listening to the model for ever after."""
    folder = Path(photo).parent
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes(Path(photo).read_bytes()[:700])
    Image.new("RGB", (900, 1)).save(folder / "thin.png")
    path = None if image is None else str(folder / image)
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError) as error:
        edit_image(editor, path, instruction, settings, ignore)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not editor.model.model._forward_hooks


@pytest.mark.parametrize(("size", "scale"), [((48, 32), 10), ((24, 512), 1), ((256, 256), 2), ((700, 500), 1)])
def test_small_images_are_enlarged_without_blur(size: tuple[int, int], scale: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    result = Comparison(Image.fromarray(pixels), [])
    view = np.asarray(result.view(result.source))
    assert result.scale == scale
    assert np.array_equal(view, pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def test_a_chain_of_thought_comes_with_its_boxes() -> None:
    """Guards against the boxes of another edit, and against frames of the unscaled image."""
    source = Image.new("RGB", (48, 32))
    result = Comparison(
        source,
        [EditedImage(source, None), EditedImage(source, "At [32, 16, 48, 32]."), EditedImage(source, "Nowhere.")],
    )
    thought = result.thought(1)
    assert thought is not None
    image, pieces = thought
    assert image.size == (480, 320) and np.asarray(image)[160, 320:480].any(axis=-1).all()
    assert [piece for piece, colour in pieces if colour] == ["[32, 16, 48, 32]"]
    assert result.thought(0) is None
    cut = Comparison(source, [EditedImage(source, "So far", cut=True)]).thought(0)
    assert cut is not None and "".join(piece for piece, _ in cut[1]) == "So far [cut: no more tokens]"
    nowhere = result.thought(2)
    assert nowhere is not None and not np.asarray(nowhere[0]).any()
