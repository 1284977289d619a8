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
from emu3.settings import check_numbers, setting

ImageFormat = Literal["png", "jpeg"]
Omitted = Literal["max_tokens", "temperature", "seed"]
OMITTABLE: tuple[Omitted, ...] = ("max_tokens", "temperature", "seed")


@dataclass(frozen=True)
class JudgeConfig:
    """The model that scores, behind an OpenAI address (`.../v1`), or behind several, separated by commas.

    The last three are for RL alone: a step of which too many rollouts have no score is not trained on.
    """

    base_url: str = setting("address up to and with /v1, or several, separated by commas")
    model: str | None = setting("its name there; none asks the server", None)
    prompts: str | None = setting(
        "checkout of VIEScore's published texts, or a wording of one's own, `module:name` or `file.py:name` "
        "(docs/extensions.md); none takes this project's",
        None,
    )
    concurrency: int = setting("questions in flight", 64, least=1, most=65536)
    attempts: int = setting("tries per request", 5, least=1, most=1000)
    reasks: int = setting("how often a reply that cannot be used is asked for again", 2, least=0, most=1000)
    deadline: float = setting(
        "for one question, retries included, once it is sent", 300.0, above=0, most=1e6, unit="seconds"
    )
    temperature: float | None = setting(
        "none leaves it to the server, as the published runs did", 0.0, least=0, most=100
    )
    seed: int = setting("of the first request of each question, later ones count up", 0, least=-(2**63), most=2**63 - 1)
    max_tokens: int = setting("longest reply", 1400, least=1, most=10**9, unit="tokens")
    max_tokens_name: str = setting("what the server calls `max_tokens`, such as max_completion_tokens", "max_tokens")
    omit: tuple[Omitted, ...] = setting("fields that the server refuses, which are not sent", ())
    image_format: ImageFormat = setting("PNG is exact, JPEG (quality 75) what the published runs sent", "png")
    cache: str | None = setting("file of replies that outlives the run", None)
    max_failed_share: float = setting(
        "of a step's rollouts without a score, above which the run saves, pauses and asks again for what failed",
        0.2,
        least=0,
        most=1,
        unit="share",
    )
    pause_seconds: float = setting("of a pause", 60.0, least=0, most=1e6, unit="seconds")
    pauses: int = setting("before the run ends", 30, least=0, most=10**6)

    def decisive(self) -> dict[str, Any]:
        """What decides a reply, beside model and question."""
        names = ("temperature", "seed", "max_tokens", "image_format")
        return {name: None if name in self.omit else getattr(self, name) for name in names}

    def changed(self, default: JudgeConfig) -> dict[str, Any]:
        """What of that is not as in `default`. A record of these equals one from before they could be set."""
        usual = default.decisive()
        return {name: value for name, value in self.decisive().items() if value != usual[name]}

    def check(self, shown: Callable[[str], str]) -> None:
        """Raise `UserError` for a number out of range. shown: a field's name as the user wrote it."""
        check_numbers(self, shown)
        if not self.max_tokens_name.isidentifier():
            raise UserError(f"{shown('max_tokens_name')}: expected a field's name, got {self.max_tokens_name!r}")


DEFAULT = JudgeConfig("")
ANNOTATE = JudgeConfig("", image_format="jpeg")


def add_judge_flags(
    parser: argparse._ActionsContainer, default: JudgeConfig = DEFAULT, *, required: bool = False, prompts: bool = True
) -> None:
    """Add `--judge-url`, `--judge-model` and so on. required: whether there has to be a judge. prompts: whether the
    command asks VIEScore's questions, whose wording `--prompts` chooses. `judge_from_flags` reads what was given."""

    def add(flag: str, field: str, help: str, **more: Any) -> None:
        value = getattr(default, field)
        shown = help if value in (None, "", ()) else f"{help} (default: {value})"
        parser.add_argument(flag, dest=f"judge_{field}", default=argparse.SUPPRESS, help=shown, **more)

    add("--judge-url", "base_url", "OpenAI-compatible address, up to and with /v1", required=required)
    add("--judge-model", "model", "name of the judge (default: the only one that is served)")
    if prompts:
        add(
            "--prompts",
            "prompts",
            "checkout of VIEScore's published prompts, or one's own, file.py:name (default: this project's)",
        )
    add("--judge-seed", "seed", "another one asks the same judge anew", type=int)
    add("--judge-temperature", "temperature", "none leaves it to the server", type=_float_or_none)
    add("--judge-max-tokens", "max_tokens", "longest reply", type=int)
    add("--judge-max-tokens-name", "max_tokens_name", "what the server calls it, such as max_completion_tokens")
    add("--judge-omit", "omit", "fields that it refuses and that are not sent", nargs="+", choices=OMITTABLE)
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
    if "omit" in given:
        given["omit"] = tuple(given["omit"])
    if not given:
        return None
    judge = dataclasses.replace(default, **given)
    judge.check(lambda name: f"--judge-{name.replace('_', '-')}")
    return judge


def _float_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)
