"""From what a person says on the command line to an editor: its kind, its options, its settings, and later itself.

`choose` gives the settings of an editor without loading it, because a run that is finished, or that has other settings,
is told so without waiting for a model. Each kind takes its own options; one that it does not know is an error, not
ignored. A kind's module is imported when it is chosen: diffusers is an extra, torch takes seconds, and the tables take
nothing but the kinds' names from here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from emu3.errors import UserError

if TYPE_CHECKING:
    import torch

    from baselines.editors.editing import ChosenEditor

EMU3, NO_EDIT, GROUND_TRUTH = "emu3", "no-edit", "ground-truth"
INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN = "instruct-pix2pix", "magicbrush", "aurora", "omnigen"
COMMAND, FOLDER = "command", "folder"
EDITORS = (EMU3, INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN, COMMAND, FOLDER, NO_EDIT, GROUND_TRUTH)

TIME_LIMIT = 600.0
"""Seconds that a command gets for one image."""

_SAMPLING = ("temperature", "top_k", "engine", "think", "best_of")
_DIFFUSERS = (INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN)
_TAKES: Mapping[str, tuple[str, ...]] = {
    EMU3: ("model", "vision", "tokenizer", *_SAMPLING, "judge_url", "judge_model", "prompts"),
    **dict.fromkeys(_DIFFUSERS, ("model", "steps")),
    COMMAND: ("command", "time_limit"),
    FOLDER: ("pictures",),
    NO_EDIT: (),
    GROUND_TRUTH: (),
}


@dataclass(frozen=True)
class EditorOptions:
    """None takes the editor's default.

    model, vision, tokenizer: folders or Hub ids, `@revision` behind an id. temperature: 0 is greedy. top_k: 0 draws
    among all codes. engine: what samples, "local" (the model itself) or "vllm" with its weights. think: write a chain
    of thought before each image. best_of: keep the best of so many, by the judge `judge_model` at `judge_url` with the
    wording `prompts` (a checkout of VIEScore's texts; ours without). steps: of a diffusion model. command: see
    `baselines.editors.fixed`. time_limit: seconds for one image of it. pictures: folder of finished images.
    """

    model: str | None = None
    vision: str | None = None
    tokenizer: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    engine: Literal["local", "vllm"] | None = None
    think: bool = False
    best_of: int | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    prompts: Path | None = None
    steps: int | None = None
    command: str | None = None
    time_limit: float | None = None
    pictures: Path | None = None

    def check(self, kind: str) -> None:
        """Raise `UserError` if there is no editor `kind`, or it does not take one of the options that are set."""
        if kind not in EDITORS:
            raise UserError(f"no editor {kind!r}; there are {', '.join(EDITORS)}")
        for option, value in asdict(self).items():
            if value is not None and value is not False and option not in _TAKES[kind]:
                raise UserError(f"editor {kind} does not take --{option.replace('_', '-')}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `EditorOptions`."""
    group = parser.add_argument_group("editor", "an editor takes what it has a use for and refuses the rest")
    group.add_argument("--model", help="folder or Hub id, ORG/NAME@REVISION (default: the published one, if any)")
    group.add_argument("--vision", help="image tokenizer: folder or Hub id (default: the one inside the model)")
    group.add_argument("--tokenizer", help="text tokenizer: folder or Hub id (default: the one inside the model)")
    group.add_argument("--temperature", type=float, help="0 is greedy (default: 1)")
    group.add_argument("--top-k", type=int, help="codes to draw among, 0 is all (default: 2048)")
    group.add_argument("--engine", choices=("local", "vllm"), help="what samples (default: local, the model itself)")
    group.add_argument("--think", action="store_true", help="write a chain of thought before each image")
    group.add_argument("--best-of", type=int, help="make so many edits and keep the one that a judge likes best")
    group.add_argument("--judge-url", help="of that judge: OpenAI-compatible address, up to and with /v1")
    group.add_argument("--judge-model", help="of that judge: its name")
    group.add_argument("--prompts", type=Path, help="of that judge: checkout of VIEScore's published prompts")
    group.add_argument("--steps", type=int, help="of a diffusion model (default: as published)")
    group.add_argument(
        "--command", help="a program with {input}, {output}, {instruction}: see baselines/editors/fixed.py"
    )
    group.add_argument("--time-limit", type=float, help=f"seconds for one image of it (default: {TIME_LIMIT:g})")
    group.add_argument("--pictures", type=Path, help="folder of finished images, ID.png")


def choose(kind: str, options: EditorOptions, image_area: int) -> ChosenEditor:
    """The editor `kind`, one of `EDITORS`; `image_area` is in pixels.

    Raises `UserError` for options that it does not take or that cannot be, and for weights that cannot be had.
    """
    options.check(kind)
    if kind == EMU3:
        from baselines.editors.emu3_editor import choose_emu3

        return choose_emu3(options, image_area)
    if kind in _DIFFUSERS:
        from baselines.editors.diffusers_editors import choose_diffusers

        return choose_diffusers(kind, options)
    from baselines.editors.fixed import choose_fixed

    return choose_fixed(kind, options)


def local_device() -> torch.device:
    """The GPU number LOCAL_RANK, which torchrun sets; the first one without it; the CPU where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
