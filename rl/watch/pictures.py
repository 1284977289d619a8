"""What the judge prefers, to look at: a grid of source, best and worst answer for a few prompts of a step.

    run/pictures/step_000050.png

The prompts are the first ones of the step, in the run's seeded order, that have a score: picked neither by their
scores nor by their looks. On several ranks they are the main rank's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emu3.files import whole_file
from rl.reward.scores import Outcome, Score
from rl.scoring import Episode

FOLDER = "pictures"
GROUPS = 6
"""Rows of a grid at most."""

_SIDE, _GAP, _TITLE = 224, 20, 54
_TEXT, _TEXT_HEIGHT = 260, 140
_CAPTION, _LINE, _THOUGHT_LINES = 26, 18, 3
_PAPER, _INK, _SOFT = "#ffffff", "#1b1d21", "#5c636e"


@dataclass(frozen=True)
class Answer:
    """An edited picture, RGB, its score from 0 to 10, None without one, and the reasoning before it, if any."""

    image: Image.Image
    score: float | None
    reasoning: str | None = None


@dataclass(frozen=True)
class Group:
    """A prompt and its answers, at least one."""

    instruction: str
    task: str | None
    source: Image.Image
    answers: list[Answer]


def write(run: Path, step: int, judged: Sequence[tuple[Episode, Outcome]]) -> Path | None:
    """Draw a step's grid into the run's folder; returns its path, None if no rollout has a score.

    judged: rollouts with what the judge said, those of a prompt side by side.
    """
    scored = [group for group in groups_of(judged) if any(a.score is not None for a in group.answers)]
    if not scored:
        return None
    path = run / FOLDER / f"step_{step:06d}.png"
    with whole_file(path) as temporary:
        draw(scored[:GROUPS], f"{run.name}, step {step}").save(temporary, format="png", optimize=True)
    return path


def groups_of(judged: Sequence[tuple[Episode, Outcome]]) -> list[Group]:
    """Rollouts put together by their prompts."""
    groups = []
    for _, members in groupby(judged, key=lambda pair: id(pair[0].prompt)):
        rollouts = list(members)
        first = rollouts[0][0]
        answers = [
            Answer(episode.edited, outcome.value if isinstance(outcome, Score) else None, episode.rollout.reasoning)
            for episode, outcome in rollouts
        ]
        groups.append(Group(first.prompt.instruction, first.prompt.task, first.source, answers))
    return groups


def draw(groups: Sequence[Group], title: str) -> Image.Image:
    """One row per group, at least one, each with a score: what was asked, the source, the best and the worst answer."""
    rows = [_row(group) for group in groups]
    picture = Image.new("RGB", (rows[0].width, _TITLE + sum(row.height for row in rows)), _PAPER)
    ImageDraw.Draw(picture).text((_GAP, _GAP - 4), title, _INK, _font(18))
    top = _TITLE
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture


def _row(group: Group) -> Image.Image:
    scored = sorted((a for a in group.answers if a.score is not None), key=lambda answer: -(answer.score or 0.0))
    shown = [("source", Answer(group.source, None)), (f"best {scored[0].score:.2f}", scored[0])]
    if len(scored) > 1:
        shown.append((f"worst {scored[-1].score:.2f}", scored[-1]))
    frame = max(_TEXT_HEIGHT, *(_fitted(answer.image).height for _, answer in shown))
    thoughts = _THOUGHT_LINES * _LINE if any(answer.reasoning for _, answer in shown) else 0
    row = Image.new("RGB", (_GAP + _TEXT + 3 * (_SIDE + _GAP), frame + _CAPTION + thoughts + _GAP), _PAPER)
    pen = ImageDraw.Draw(row)
    asked = _wrapped(group.instruction, _TEXT - _GAP, 16, 4)
    pen.multiline_text((_GAP, 0), asked, _INK, _font(16), spacing=6)
    failed = len(group.answers) - len(scored)
    notes = [
        group.task or "",
        _wrapped("scores " + ", ".join(f"{answer.score:.3g}" for answer in scored), _TEXT - _GAP, 14, 2),
        f"{failed} without a score" if failed else "",
    ]
    below = pen.multiline_textbbox((_GAP, 0), asked, font=_font(16), spacing=6)[3] + 10
    pen.multiline_text((_GAP, below), "\n".join(filter(None, notes)), _SOFT, _font(14), spacing=5)
    for place, (caption, answer) in enumerate(shown):
        left = _GAP + _TEXT + place * (_SIDE + _GAP)
        image = _fitted(answer.image)
        row.paste(image, (left, 0))
        pen.text((left, image.height + 5), caption, _INK if place else _SOFT, _font(15))
        if answer.reasoning:
            thought = _wrapped(answer.reasoning, _SIDE, 12, _THOUGHT_LINES)
            pen.multiline_text((left, image.height + _CAPTION), thought, _SOFT, _font(12), spacing=4)
    return row


def _fitted(image: Image.Image) -> Image.Image:
    """At most `_SIDE` along a side: small pictures by a whole factor, so that their pixels stay squares."""
    factor = _SIDE / max(image.size)
    if factor >= 2:
        return image.resize((image.width * int(factor), image.height * int(factor)), Image.Resampling.NEAREST)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def _wrapped(text: str, width: int, size: int, lines: int) -> str:
    """The first `lines` lines of `text` in `width` pixels. A character that the font lacks is an empty box."""
    characters = max(1, int(width / _font(size).getlength("average sentence") * len("average sentence")))
    return "\n".join(textwrap.wrap(" ".join(text.split()), characters, max_lines=lines, placeholder=" …"))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
