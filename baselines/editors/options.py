"""What can be said about an editor on the command line: its kind, and the options that this kind takes.

An option that a kind does not know is an error, not ignored. Nothing is imported here that takes time: the tables need
the kinds' names, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from emu3.errors import UserError
from rl.reward.config import JudgeConfig, add_judge_flags

EMU3, NO_EDIT, GROUND_TRUTH = "emu3", "no-edit", "ground-truth"
INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN = "instruct-pix2pix", "magicbrush", "aurora", "omnigen"
COMMAND, FOLDER = "command", "folder"
DIFFUSERS = (INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN)
EDITORS = (EMU3, *DIFFUSERS, COMMAND, FOLDER, NO_EDIT, GROUND_TRUTH)

TIME_LIMIT = 600.0
"""Seconds that a command gets for one image."""

_SAMPLING = ("temperature", "top_k", "engine", "think", "best_of")
_TAKES: Mapping[str, tuple[str, ...]] = {
    EMU3: ("model", "vision", "tokenizer", *_SAMPLING, "judge"),
    **dict.fromkeys(DIFFUSERS, ("model", "steps")),
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
    of thought before each image. best_of: keep the best of so many, by `judge`. steps: of a diffusion model. command:
    see `baselines.editors.fixed`. time_limit: seconds for one image of it. pictures: folder of finished images.
    """

    model: str | None = None
    vision: str | None = None
    tokenizer: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    engine: Literal["local", "vllm"] | None = None
    think: bool = False
    best_of: int | None = None
    judge: JudgeConfig | None = None
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
                flag = "judge-..." if option == "judge" else option.replace("_", "-")
                raise UserError(f"editor {kind} does not take --{flag}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of `EditorOptions`, those of its judge as all commands have them."""
    group = parser.add_argument_group("editor", "an editor takes what it has a use for and refuses the rest")
    group.add_argument("--model", help="folder or Hub id, ORG/NAME@REVISION (default: the published one, if any)")
    group.add_argument("--vision", help="image tokenizer: folder or Hub id (default: the one inside the model)")
    group.add_argument("--tokenizer", help="text tokenizer: folder or Hub id (default: the one inside the model)")
    group.add_argument("--temperature", type=float, help="0 is greedy (default: 1)")
    group.add_argument("--top-k", type=int, help="codes to draw among, 0 is all (default: 2048)")
    group.add_argument("--engine", choices=("local", "vllm"), help="what samples (default: local, the model itself)")
    group.add_argument("--think", action="store_true", help="write a chain of thought before each image")
    group.add_argument("--best-of", type=int, help="make so many edits and keep the one that a judge likes best")
    group.add_argument("--steps", type=int, help="of a diffusion model (default: as published)")
    group.add_argument(
        "--command", help="a program with {input}, {output}, {instruction}: see baselines/editors/fixed.py"
    )
    group.add_argument("--time-limit", type=float, help=f"seconds for one image of it (default: {TIME_LIMIT:g})")
    group.add_argument("--pictures", type=Path, help="folder of finished images, ID.png")
    add_judge_flags(parser.add_argument_group("judge", "of --best-of; it has to be named"))
