"""The settings of a judge, in one place for all that ask one: RL (config keys `judge.*`), `baselines.score`, best-of-n
in `baselines.evaluate`, and `rl.annotate` (flags `--judge-*`).

`rl.reward.client.Judge` makes the client of a `JudgeConfig`. Nothing of the client is imported here, so that a command
that only reads its flags starts at once. One default differs between commands: `rl.annotate` sends JPEG (`ANNOTATE`),
as it always has, since the format is a part of the key by which replies are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from emu3.errors import UserError

ImageFormat = Literal["png", "jpeg"]


@dataclass(frozen=True)
class JudgeConfig:
    """The model that scores, behind an OpenAI address (`.../v1`), or behind several, separated by commas.

    model: none asks the server. prompts: checkout of VIEScore's published texts; none takes this project's.
    concurrency: questions in flight. attempts: tries per request. reasks: how often a reply that cannot be used is
    asked for again. deadline: seconds for one question, retries included, once it is sent. temperature: none leaves it
    to the server, as the published runs did. max_tokens: of a reply. seed: of the first request of each question, later
    ones count up. image_format: PNG is exact, JPEG (quality 75) what the published runs sent. cache: file of replies
    that outlives the run.
    For RL alone: max_failed_share: above it a step is not trained on: the run saves, waits `pause_seconds`, asks again
    for what failed, at most `pauses` times, and then ends.
    """

    base_url: str
    model: str | None = None
    prompts: str | None = None
    concurrency: int = 64
    attempts: int = 5
    reasks: int = 2
    deadline: float = 300.0
    temperature: float | None = 0.0
    seed: int = 0
    max_tokens: int = 1400
    image_format: ImageFormat = "png"
    cache: str | None = None
    max_failed_share: float = 0.2
    pause_seconds: float = 60.0
    pauses: int = 30

    def decisive(self) -> dict[str, Any]:
        """What decides a reply, beside model and question."""
        return {name: getattr(self, name) for name in ("temperature", "seed", "max_tokens", "image_format")}

    def changed(self, default: JudgeConfig) -> dict[str, Any]:
        """What of that is not as in `default`. A record of these equals one from before they could be set."""
        usual = default.decisive()
        return {name: value for name, value in self.decisive().items() if value != usual[name]}

    def check(self, shown: Callable[[str], str]) -> None:
        """Raise `UserError` for a number out of range. shown: a field's name as the user wrote it."""
        at_least = {"concurrency": 1, "attempts": 1, "reasks": 0, "max_tokens": 1, "pause_seconds": 0, "pauses": 0}
        for name, lowest in at_least.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{shown(name)}: expected at least {lowest}, got {getattr(self, name)}")
        if not self.deadline > 0:
            raise UserError(f"{shown('deadline')}: expected more than 0, got {self.deadline}")
        if self.temperature is not None and not self.temperature >= 0:
            raise UserError(f"{shown('temperature')}: expected at least 0, got {self.temperature}")


DEFAULT = JudgeConfig("")
ANNOTATE = JudgeConfig("", image_format="jpeg")


def add_judge_flags(
    parser: argparse._ActionsContainer, default: JudgeConfig = DEFAULT, *, required: bool = False, prompts: bool = True
) -> None:
    """Add `--judge-url`, `--judge-model` and so on. required: whether there has to be a judge. prompts: whether the
    command asks VIEScore's questions, whose wording `--prompts` chooses. `judge_from_flags` reads what was given."""

    def add(flag: str, field: str, help: str, **more: Any) -> None:
        value = getattr(default, field)
        shown = help if value in (None, "") else f"{help} (default: {value})"
        parser.add_argument(flag, dest=f"judge_{field}", default=argparse.SUPPRESS, help=shown, **more)

    add("--judge-url", "base_url", "OpenAI-compatible address, up to and with /v1", required=required)
    add("--judge-model", "model", "name of the judge (default: the only one that is served)")
    if prompts:
        add("--prompts", "prompts", "checkout of VIEScore's published prompts (default: this project's)")
    add("--judge-seed", "seed", "another one asks the same judge anew", type=int)
    add("--judge-temperature", "temperature", "none leaves it to the server", type=_float_or_none)
    add("--judge-max-tokens", "max_tokens", "longest reply", type=int)
    add("--judge-image-format", "image_format", "of the images that it gets", choices=("png", "jpeg"))
    add("--judge-concurrency", "concurrency", "questions in flight", type=int)
    add("--judge-deadline", "deadline", "seconds for one question, retries included", type=float)
    add("--judge-attempts", "attempts", "tries per request", type=int)
    add("--judge-reasks", "reasks", "how often a reply that cannot be used is asked for again", type=int)


def judge_from_flags(arguments: dict[str, Any], default: JudgeConfig = DEFAULT) -> JudgeConfig | None:
    """The judge of parsed flags, which are taken out of `arguments`; None if none of them was given. `base_url` is ""
    where others were given without it. Raises `UserError` for a number out of range."""
    names = [field.name for field in dataclasses.fields(JudgeConfig) if f"judge_{field.name}" in arguments]
    given = {name: arguments.pop(f"judge_{name}") for name in names}
    if not given:
        return None
    judge = dataclasses.replace(default, **given)
    judge.check(lambda name: f"--judge-{name.replace('_', '-')}")
    return judge


def _float_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)
