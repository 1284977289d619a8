"""What happens between the button and the page: checks, the edit with its progress, and the images to show.

Nothing of the page's framework is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from transformers import Emu3ForCausalLM

from emu3.boxes import draw_boxes, find_boxes, marked_text
from emu3.errors import UserError
from emu3.mllm.editor import EditedImage, Editor
from emu3.tokenizer.images import fit_image, read_image

MAX_SAMPLES = 8
EXAMPLE_SIZE = (384, 256)
VIEW_SIDE = 512


@dataclass(frozen=True)
class Settings:
    """What can be set on the page; the meanings are `Editor.edit`'s."""

    n: int
    temperature: float
    seed: int | None
    think: bool


@dataclass(frozen=True)
class Comparison:
    """The fitted source image and its edits, all of one size."""

    source: Image.Image
    edits: list[EditedImage]

    @property
    def scale(self) -> int:
        """How many times as large the images are shown: small ones fill about `VIEW_SIDE` pixels."""
        return max(1, VIEW_SIDE // max(self.source.size))

    def view(self, image: Image.Image) -> Image.Image:
        """`image` with each of its pixels as scale x scale: nothing is lost and nothing blurred."""
        return image.resize((image.width * self.scale, image.height * self.scale), Image.Resampling.NEAREST)

    def before_after(self, index: int) -> tuple[Image.Image, Image.Image]:
        return self.view(self.source), self.view(self.edits[index].image)

    def thought(self, index: int) -> tuple[Image.Image, list[tuple[str, str | None]]] | None:
        """An edit's chain of thought: the source with its boxes, and its text in coloured pieces; None without one."""
        text = self.edits[index].reasoning
        if text is None:
            return None
        boxes = find_boxes(text, *self.source.size)
        cut: list[tuple[str, str | None]] = [(" [cut: no more tokens]", None)] if self.edits[index].cut else []
        return draw_boxes(self.view(self.source), boxes, self.scale), [*marked_text(text, boxes), *cut]


def edit_image(
    editor: Editor,
    image: str | None,
    instruction: str,
    settings: Settings,
    progress: Callable[[int, int], None],
) -> Comparison:
    """Edit the image in a file; a sample is the one that `emu3.edit` gives for the same seed.

    But an image that has the size of an edit already is one, and is not scaled: turn by turn it would be drawn a little
    larger and lose its right and lower edge.
    progress: called with the tokens written per sample so far and the most there can be; what it raises ends the edit.
    Raises UserError for what the person at the page can mend.
    """
    if image is None:
        raise UserError("There is no image yet: upload one")
    if not instruction.strip():
        raise UserError("The instruction is empty: say what to change")
    if settings.seed is None:
        raise UserError("The seed is empty: give a whole number")
    upload = read_image(Path(image), "The image")
    try:
        area = editor.image_area
        source = fit_image(upload, area, editor.codec.factor)
        if source.size == upload.size:
            area = upload.width * upload.height
            source = fit_image(upload, area, editor.codec.factor)
        cells = source.width * source.height // editor.codec.factor**2
        most = cells + (editor.think_tokens if settings.think else 0)
        with passes_counted(editor.model, lambda passes: progress(passes, most)):
            [edits] = editor.edit(
                [upload],
                [instruction],
                n=settings.n,
                temperature=settings.temperature,
                seed=settings.seed,
                think=settings.think,
                image_area=area,
            )
    except UserError as error:
        message = str(error).removeprefix("image 0: ")
        raise UserError(message[:1].upper() + message[1:]) from error
    return Comparison(source, edits)


def examples() -> list[tuple[Image.Image, str]]:
    """Drawn scenes with an instruction each, for a visitor without an image at hand."""

    def scene(background: str, *shapes: tuple[str, tuple[int, int, int, int], str]) -> Image.Image:
        image = Image.new("RGB", EXAMPLE_SIZE, background)
        draw = ImageDraw.Draw(image)
        for kind, (left, top, right, bottom), colour in shapes:
            if kind == "triangle":
                draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], colour)
            else:
                (draw.ellipse if kind == "circle" else draw.rectangle)((left, top, right, bottom), colour)
        return image

    red, green, blue, yellow = "#d92626", "#22a03c", "#2850dc", "#f0cc2e"
    return [
        (
            scene("#f0f0eb", ("circle", (40, 30, 140, 130), red), ("rectangle", (220, 140, 330, 230), blue)),
            "paint the red circle green",
        ),
        (
            scene("#969699", ("triangle", (40, 110, 170, 230), green), ("circle", (230, 40, 330, 140), yellow)),
            "make the background white",
        ),
        (
            scene("#18181c", ("rectangle", (50, 40, 150, 130), yellow), ("triangle", (220, 110, 340, 230), blue)),
            "remove the yellow square",
        ),
    ]


@contextmanager
def passes_counted(model: Emu3ForCausalLM, report: Callable[[int], None]) -> Iterator[None]:
    """Call `report` with the number of the model's forward passes after each; the editor samples a token per pass."""
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        report(passes)

    hook = model.model.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()
