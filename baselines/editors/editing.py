"""What an editor is, what can be said of it on the command line, which samples it edits together, and the one size of
all images of a sample.

An `ImageEditor` is handed images and instructions and nothing else of a sample, so no model can look at a target. The
ground truth and a folder of finished images need more, and no model: a `Lookup` finds the image that belongs to a
sample.

Batches and seeds follow from the rows and the settings, not from how many processes there are or what is done already:
an interrupted run and a run on four GPUs give the images of an uninterrupted run on one.

An option that a kind of editor does not know is an error, not ignored.

Whoever edits, a judge sees images of one size. The source is brought to the image area and cropped to whole cells of
the image tokenizer, as our own models' images are. An editor that works at the dataset's size, or near it, gets its
image resized once, to where the source went.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from PIL import Image

from baselines.benchmarks.samples import Sample, Samples
from baselines.results.records import GROUND_TRUTH, NO_EDIT
from emu3.errors import UserError
from emu3.extensions import is_extension
from emu3.mllm.layout import THINK_TOKENS
from emu3.settings import COUNT, number_in
from emu3.tokenizer.images import fit_image, scale_image, to_rgb
from rl.reward.config import JudgeConfig, add_judge_flags

if TYPE_CHECKING:
    import torch

FACTOR = 8
"""Sides of a shown image are multiples of this, whoever edits: every row of a table sees the same sources."""

PATCH = 16
"""Editors that work in patches round the sides of an image by up to this many pixels; that is the same frame still."""


EMU3 = "emu3"
INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN = "instruct-pix2pix", "magicbrush", "aurora", "omnigen"
COMMAND, FOLDER = "command", "folder"
DIFFUSERS = (INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN)
EDITORS = (EMU3, *DIFFUSERS, COMMAND, FOLDER, NO_EDIT, GROUND_TRUTH)

TIME_LIMIT = 600.0
"""Seconds that a command gets for one image."""

_SAMPLING = ("temperature", "top_k", "engine", "quantization", "think", "mixed", "think_tokens", "best_of")
_TAKES: Mapping[str, tuple[str, ...]] = {
    EMU3: ("model", "vision", "tokenizer", *_SAMPLING, "judge"),
    **dict.fromkeys(DIFFUSERS, ("model", "steps")),
    COMMAND: ("command", "time_limit"),
    FOLDER: ("images",),
    NO_EDIT: (),
    GROUND_TRUTH: (),
}


@dataclass(frozen=True)
class Edited:
    """One edited image, RGB, and the chain of thought before it, if there was one. cut: whether that ended for want of
    tokens.

    candidates: scores of the images that this one was chosen among, None for one without a score; empty where nothing
    was chosen.
    """

    image: Image.Image
    reasoning: str | None = None
    candidates: tuple[float | None, ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class NoImage:
    """A sample that came to nothing while others may do. reason: one line."""

    reason: str


EditResult = Edited | NoImage
Lookup = Callable[[Sample], EditResult]


class ImageEditor(Protocol):
    """Edits a batch.

    `edit` takes RGB images at the size that the dataset has (the editor brings them to its own), one instruction per
    image and the batch's seed, and gives one result per input, in order. The same arguments give the same images.
    """

    def edit(self, images: Sequence[Image.Image], instructions: Sequence[str], seed: int) -> Sequence[EditResult]: ...


@dataclass(frozen=True)
class ChosenEditor:
    """An editor before it is loaded. name: its row in the tables, if nobody gives one.

    settings: all that decides its images, as JSON values. batch_size: images at once, if nobody says. equal_sizes:
    whether it is faster on batches of one size. load: the editor, made when the context is entered.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    batch_size: int
    equal_sizes: bool
    load: Callable[[], AbstractContextManager[ImageEditor | Lookup]]


@dataclass(frozen=True)
class EditorOptions:
    """None takes the editor's default.

    model, vision, tokenizer: folders or Hub ids, `@revision` behind an id. temperature: 0 is greedy. top_k: 0 draws
    among all codes. engine: what samples, "local" (the model itself) or "vllm" with its weights. quantization: bits per
    weight of the layers. think: write a chain of thought before each image. mixed: let the model decide whether to.
    think_tokens: most tokens of a chain. best_of: keep the best of so many, by `judge`. steps: of a diffusion model.
    command: see `baselines.editors.fixed`. time_limit: seconds for one image of it. images: folder of finished images.
    """

    model: str | None = None
    vision: str | None = None
    tokenizer: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    engine: Literal["local", "vllm"] | None = None
    quantization: Literal["8bit", "4bit"] | None = None
    think: bool = False
    mixed: bool = False
    think_tokens: int | None = None
    best_of: int | None = None
    judge: JudgeConfig | None = None
    steps: int | None = None
    command: str | None = None
    time_limit: float | None = None
    images: Path | None = None

    def check(self, kind: str) -> None:
        """Raise `UserError` if there is no editor `kind`, or it does not take one of the options that are set."""
        own = is_extension(kind)
        if kind not in EDITORS and not own:
            raise UserError(f"no editor {kind!r}; there are {', '.join(EDITORS)}, and your own: file.py:name")
        for option, value in asdict(self).items():
            if value is not None and value is not False and option not in (("model",) if own else _TAKES[kind]):
                flag = "judge-..." if option == "judge" else option.replace("_", "-")
                raise UserError(f"editor {kind} does not take --{flag}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of `EditorOptions`, those of its judge as all commands have them."""
    group = parser.add_argument_group("editor", "an editor takes what it has a use for and refuses the rest")
    group.add_argument("--model", help="folder or Hub id, ORG/NAME@REVISION (default: the published one, if any)")
    group.add_argument("--vision", help="image tokenizer: folder or Hub id (default: the one that the model names)")
    group.add_argument("--tokenizer", help="text tokenizer: folder or Hub id (default: the one inside the model)")
    group.add_argument("--temperature", type=number_in(float, least=0, most=1e6), help="0 is greedy (default: 1)")
    group.add_argument("--top-k", type=number_in(int, least=0), help="codes to draw among, 0 is all (default: 2048)")
    group.add_argument("--engine", choices=("local", "vllm"), help="what samples (default: local, the model itself)")
    group.add_argument("--quantization", choices=("8bit", "4bit"), help="bits per weight of the layers (default: none)")
    group.add_argument("--think", action="store_true", help="write a chain of thought before each image")
    group.add_argument("--mixed", action="store_true", help="let the model decide whether to (published MODE=mixed)")
    group.add_argument("--think-tokens", type=COUNT, help=f"most tokens of a chain (default: {THINK_TOKENS})")
    group.add_argument("--best-of", type=COUNT, help="make so many edits and keep the one that a judge likes best")
    group.add_argument("--steps", type=COUNT, help="of a diffusion model (default: as published)")
    group.add_argument(
        "--command", help="a program with {input}, {output}, {instruction}: see baselines/editors/fixed.py"
    )
    group.add_argument(
        "--time-limit",
        type=number_in(float, above=0, most=1e6),
        help=f"seconds for one image of it (default: {TIME_LIMIT:g})",
    )
    group.add_argument("--images", "--pictures", dest="images", type=Path, help="folder of finished images, ID.png")
    add_judge_flags(parser.add_argument_group("judge", "of --best-of; it has to be named"))


def local_device() -> torch.device:
    """The GPU number LOCAL_RANK, which torchrun sets; the first one without it; the CPU where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@dataclass(frozen=True)
class SampleBatch:
    """Rows that are edited together. start: how many rows stand before it, in the order of the batches."""

    start: int
    rows: tuple[int, ...]

    def seed(self, run_seed: int) -> int:
        """The batch's own seed, 32 bits."""
        return int(np.random.SeedSequence((run_seed, self.start)).generate_state(1)[0])


def make_batches(samples: Samples, rows: Sequence[int], size: int, equal_sizes: bool) -> list[SampleBatch]:
    """`rows` in order, `size` at a time; with equal_sizes, those with sources of one size together, and no others."""
    groups: dict[tuple[int, int] | None, list[int]] = {}
    for row in rows:
        groups.setdefault(samples.size(row) if equal_sizes else None, []).append(row)
    batches: list[SampleBatch] = []
    start = 0
    for group in groups.values():
        for first in range(0, len(group), size):
            batches.append(SampleBatch(start, tuple(group[first : first + size])))
            start += len(batches[-1].rows)
    return batches


@dataclass(frozen=True)
class Share:
    """The batches that one of `count` processes does: number `index`, `index + count`, ..."""

    index: int
    count: int

    def of(self, batches: Sequence[SampleBatch]) -> Sequence[SampleBatch]:
        return batches[self.index :: self.count]


def share_of(text: str | None) -> Share:
    """`I/N` as a share, I from 0; without a text what torchrun says by RANK and WORLD_SIZE, else everything."""
    if text is None:
        return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"a shard is I/N with I from 0 to N-1, such as 0/4, not {text!r}")
    return Share(int(match[1]), int(match[2]))


class SourceFrame:
    """Where a source of any size goes at `image_area` pixels. `shown` is the source there, RGB; `uncropped` is the same
    before it was cropped to whole cells, as the published evaluation showed it to the judge.

    Raises `UserError` for a source so thin that a side would be shorter than `FACTOR`.
    """

    def __init__(self, source: Image.Image, image_area: int) -> None:
        scaled = scale_image(source, image_area, FACTOR)
        self._area = image_area
        self._native, self._scaled = source.size, scaled.size
        self._box = (0, 0, scaled.width - scaled.width % FACTOR, scaled.height - scaled.height % FACTOR)
        self.uncropped = scaled
        self.shown = scaled.crop(self._box)

    def holds(self, size: tuple[int, int]) -> bool:
        """Whether an image of that width and height shows the frame of the source, up to rounding by `PATCH`."""
        (width, height), (native_width, native_height) = size, self._native
        return (
            abs(width - height * native_width / native_height) < PATCH
            or abs(height - width * native_height / native_width) < PATCH
        )

    def fit(self, edited: Image.Image) -> Image.Image:
        """An edit of the source, RGB, at the size of `shown`; resized (bicubic) unless it has that size already."""
        edited = to_rgb(edited)
        if edited.size == self.shown.size:
            return edited
        return edited.resize(self._scaled, Image.Resampling.BICUBIC).crop(self._box)

    def fit_mask(self, mask: Image.Image) -> Image.Image:
        """A mask of the source, of mode L, at the size of `shown`; a pixel is what it was nearest to."""
        return mask.resize(self._scaled, Image.Resampling.NEAREST).crop(self._box)

    def fit_target(self, target: Image.Image) -> Image.Image:
        """A target, which datasets may have at any shape: as an edit if it has the source's, else by itself."""
        return self.fit(target) if self.holds(target.size) else fit_image(target, self._area, FACTOR)
