"""What can be said about an editor on the command line, and what is known of one before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from baselines.editors.names import (
    AURORA,
    COMMAND,
    EDITORS,
    EMU3,
    FOLDER,
    GROUND_TRUTH,
    INSTRUCT_PIX2PIX,
    MAGICBRUSH,
    NO_EDIT,
    OMNIGEN,
)
from baselines.editors.protocol import Predictor
from emu3.errors import UserError
from rl.reward.config import JudgeConfig


@dataclass(frozen=True)
class EditorOptions:
    """None takes the editor's default.

    model, vision, tokenizer: folders or Hub ids, `@revision` behind an id. temperature: 0 is greedy. top_k: 0 draws
    among all codes. engine: what samples, "local" (the model itself) or "vllm" with its weights. think: write a chain
    of thought before each picture. best_of: keep the best of so many, by `judge`. steps: of a diffusion model. command:
    see `baselines.editors.command`. time_limit: seconds for one picture of it. pictures: folder of finished pictures.
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


_SAMPLING = ("temperature", "top_k", "engine", "think", "best_of")
_TAKES: Mapping[str, tuple[str, ...]] = {
    EMU3: ("model", "vision", "tokenizer", *_SAMPLING, "judge"),
    **dict.fromkeys((INSTRUCT_PIX2PIX, MAGICBRUSH, AURORA, OMNIGEN), ("model", "steps")),
    COMMAND: ("command", "time_limit"),
    FOLDER: ("pictures",),
    NO_EDIT: (),
    GROUND_TRUTH: (),
}


@dataclass(frozen=True)
class ChosenEditor:
    """An editor before it is loaded. name: its row in the tables, if nobody gives one.

    settings: all that decides its pictures, as JSON values. batch_size: pictures at once, if nobody says.
    equal_sizes: whether it is faster on batches of one size. load: the predictor, made when it is entered.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    batch_size: int
    equal_sizes: bool
    load: Callable[[], AbstractContextManager[Predictor]]
