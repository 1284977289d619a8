"""What a run shows of itself while it goes: a line per step, grids of images, the report, the tracker.

Everything but the tracker lies in the run's folder. The main process alone has one. What cannot be written, on a full
disk, costs the run nothing.

A line has what was averaged over a step's rollouts, what was only counted, and how long its phases took. In the table
`latency` is the judge's, in seconds, `const` the share of groups of equal scores.

A grid (`pictures/step_000050.png`) has source, best and worst completion for a few prompts of a step: the first ones,
in the run's seeded order, that have a score, picked neither by their scores nor by their looks. On several ranks they
are the main rank's."""

from __future__ import annotations

import textwrap
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from emu3.files import whole_file
from emu3.report.console import Table, duration, seconds, short, shown, step_of
from emu3.report.metrics_file import NAME, MetricsFile, Spared, Tracker, lines_before
from emu3.report.run_page import REPORT
from rl.config import Config
from rl.reward.counters import failures_with_a_task
from rl.reward.scores import Outcome, Score, Unparsable
from rl.scoring import Episode
from rl.watch.report import step_seconds, tokens_per_second, write_report

GRIDS = "pictures"
GROUPS = 6
"""Rows of a grid at most."""
REPORT_SHARE = 0.02
"""Of the run's time, at most, that goes into its report."""
LOOKED_AT, WAITED_SHARE, WAITED_SECONDS = 3, 0.2, 1.0
"""Steps whose times are looked at, and the share of a step and the seconds from which waiting for the judge is worth a
word."""

_SIDE, _GAP, _TITLE = 224, 20, 54
_TEXT, _TEXT_HEIGHT = 260, 140
_CAPTION, _LINE, _THOUGHT_LINES = 26, 18, 3
_PAPER, _INK, _SOFT = "#ffffff", "#1b1d21", "#5c636e"


@dataclass(frozen=True)
class JudgedRollout:
    """One rollout for the log: kind of edit, number of tokens, what the judge said, and whether its chain of thought
    was cut, None without one."""

    task: str | None
    tokens: int
    outcome: Outcome
    cut: bool | None = None


def reward_metrics(judged: Sequence[JudgedRollout]) -> dict[str, Any]:
    """Means over the rollouts that have a score, None where none has; failures are counted, never averaged."""
    scores = [item.outcome for item in judged if isinstance(item.outcome, Score)]
    by_task: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    for item in judged:
        if isinstance(item.outcome, Score):
            by_task[item.task or "none"].append(item.outcome.value)
            for name, value in item.outcome.parts.items():
                parts[name].append(value)
    tasks = Counter(item.task or "none" for item in judged)
    failures = Counter(item.task or "none" for item in judged if not isinstance(item.outcome, Score))
    unparsable = sum(isinstance(item.outcome, Unparsable) for item in judged)
    return {
        "reward": _mean([score.value for score in scores]),
        "reward_by_task": {task: _mean(values) for task, values in sorted(by_task.items())},
        "parts": {name: _mean(values) for name, values in parts.items()},
        "rollouts": len(judged),
        "failed": len(judged) - len(scores),
        "failed_by_task": dict(sorted(failures.items())),
        "rollouts_by_task": dict(sorted(tasks.items())),
        "unparsable": unparsable,
        "unavailable": len(judged) - len(scores) - unparsable,
        "answer_tokens": _mean([item.tokens for item in judged]),
        "sampled_tokens": sum(item.tokens for item in judged),
        "cut_chains": None if all(item.cut is None for item in judged) else sum(item.cut is True for item in judged),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class Timer:
    """Seconds per phase of a step. A phase inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = 0.0  # seconds of phases inside the present one

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start, outer, self._inner = time.perf_counter(), self._inner, 0.0
        yield
        passed = time.perf_counter() - start
        self.seconds[name] += passed - self._inner
        self._inner = outer + passed


class Watch:
    """Watches the run in folder `run` from step `start` on: the lines of that step and later ones are dropped. Raises
    UserError if its tracker cannot begin."""

    def __init__(self, run: Path, config: Config, start: int) -> None:
        self._run = run
        self._config = config
        self._file = MetricsFile(run, lines_before(run, start))
        self._spared = Spared()
        self._tracker = start_tracker(config, run)
        self._table = Table()
        self._warned = False
        self._by_task: dict[str, tuple[int, int]] = {}  # failed and all rollouts so far
        for line in self._file.lines:
            add_failures(self._by_task, line)
        self._report = threading.Thread()
        self._next_report = 0.0
        self._advised = False

    def step(self, metrics: dict[str, Any], judged: Sequence[tuple[Episode, Outcome]]) -> None:
        """Record a step. metrics: its line, see rl/README.md. judged: this rank's rollouts, those of a prompt side by
        side, each with what the judge said of it."""
        watch, step = self._config.watch, metrics["step"]
        with self._spared.output(f"line in {NAME}"):
            self._file.append(metrics)
        each = step_seconds(self._file.lines)
        left = None if each is None else each * (self._config.steps - step - 1)
        with self._spared.output("line of the table"):
            print(self._table.lines(cells(metrics, self._config.steps, left)), flush=True)
        add_failures(self._by_task, metrics)
        if metrics["failed"] and not self._warned and (what := failures_with_a_task(self._by_task)) is not None:
            self._warned = True
            print(f"warning: failures go with the task: {what}; the policy is trained on the others", flush=True)
        grid = None
        if watch.images_every and step % watch.images_every == 0:
            with self._spared.output("grid of images"):
                grid = write_grid(self._run, step, judged)
        if self._tracker is not None:
            self._tracker.log({"tokens_per_second": tokens_per_second(metrics), **metrics}, grid)
        due = watch.report_every and step % watch.report_every == 0 and time.monotonic() > self._next_report
        if due and not self._report.is_alive():
            self._report = threading.Thread(target=self._write_report, name="report", daemon=True)
            self._report.start()
        if (advice := self._advice()) is not None:
            with self._spared.output("advice"):
                print(advice, flush=True)

    def close(self) -> None:
        """The last edition of the report, and the end of the tracker's run."""
        if self._tracker is not None:
            self._tracker.close()
        if self._report.is_alive():
            self._report.join()
        if self._config.watch.report_every and self._file.lines:
            self._write_report()

    def _write_report(self) -> None:
        """Beside training: no rank waits for it. The page grows with the run, so its editions become rarer."""
        start = time.monotonic()
        with self._spared.output(REPORT):
            write_report(self._run)
        self._next_report = time.monotonic() + (time.monotonic() - start) / REPORT_SHARE

    def _advice(self) -> str | None:
        """What to set where the judge is the longer part, once, from the times of `LOOKED_AT` steps."""
        recent = [line["seconds"] for line in self._file.lines[-LOOKED_AT:]]
        if self._advised or len(recent) < LOOKED_AT or self._config.rollout.ahead:
            return None
        self._advised = True
        waited, sampled = (median(each.get(name, 0.0) for each in recent) for name in ("judge", "sample"))
        whole = median(sum(each.values()) for each in recent)
        if waited < max(WAITED_SHARE * whole, WAITED_SECONDS):
            return None
        waves = (
            f"rollout.vllm.max_sequences={self._config.rollout.group_size} samples in waves, which it judges "
            "beside each other"
            if self._config.rollout.engine == "vllm"
            else "rollout.prompts_per_batch=1 hands it one group after the other"
        )
        longer = (
            "; rollout.ahead=1 hides more, at the price of a policy that is one update old" if waited > sampled else ""
        )
        return f"note: {waited:.0f} of {whole:.0f} s a step are spent waiting for the judge: {waves}{longer}"


def add_failures(counts: dict[str, tuple[int, int]], line: Mapping[str, Any]) -> None:
    """Add a step's failed and all rollouts of each task to those of the steps before; lines of older versions have no
    tasks."""
    for task, rollouts in line.get("rollouts_by_task", {}).items():
        failed, total = counts.get(task, (0, 0))
        counts[task] = failed + line["failed_by_task"].get(task, 0), total + rollouts


def start_tracker(config: Config, run: Path) -> Tracker | None:
    """The tracker that the config asks for, None if it asks for none. `rl.config` has checked that it is installed."""
    name = config.watch.tracker
    if name is None:
        return None
    return Tracker(name, config.watch.project, run, config.run_name, asdict(config), option="watch.tracker")


def cells(metrics: Mapping[str, Any], steps: int, seconds_left: float | None) -> dict[str, str]:
    """The values of a step as they are shown, by the names of their columns.

    steps: of the whole run. seconds_left: until its end.
    """
    rates = tokens_per_second(metrics)
    gap = metrics.get("probe_gap")
    return {
        "step": step_of(metrics["step"], steps),
        "reward": shown(metrics["reward"], ".3f"),
        **{name: shown(value, ".2f") for name, value in metrics["parts"].items()},
        "kl": shown(metrics["kl"], ".4f"),
        "entropy": shown(metrics["entropy"], ".3f"),
        "const": shown(metrics["constant_share"], ".2f"),
        "grad": shown(metrics["grad_norm"], ".3f"),
        **({} if gap is None else {"probe": format(gap, ".1e")}),
        "tokens": shown(metrics["answer_tokens"], ".0f"),
        "failed": f"{metrics['failed']}/{metrics['rollouts']}",
        "latency": seconds((metrics.get("judge") or {}).get("latency_mean")),
        **{f"{phase} s": seconds(value) for phase, value in metrics["seconds"].items()},
        "sampled/s": short(rates["sampled"]),
        "trained/s": short(rates["trained"]),
        "left": "-" if seconds_left is None else duration(seconds_left),
    }


@dataclass(frozen=True)
class ScoredImage:
    """An edited image, RGB, its score from 0 to 10, None without one, and the reasoning before it, if any."""

    image: Image.Image
    score: float | None
    reasoning: str | None = None


@dataclass(frozen=True)
class ImageGroup:
    """A prompt and its completions as images, at least one."""

    instruction: str
    task: str | None
    source: Image.Image
    images: list[ScoredImage]


def write_grid(run: Path, step: int, judged: Sequence[tuple[Episode, Outcome]]) -> Path | None:
    """Draw a step's grid into the run's folder; returns its path, None if no rollout has a score.

    judged: rollouts with what the judge said, those of a prompt side by side.
    """
    scored = [group for group in groups_of(judged) if any(a.score is not None for a in group.images)]
    if not scored:
        return None
    path = run / GRIDS / f"step_{step:06d}.png"
    with whole_file(path) as temporary:
        draw(scored[:GROUPS], f"{run.name}, step {step}").save(temporary, format="png", optimize=True)
    return path


def groups_of(judged: Sequence[tuple[Episode, Outcome]]) -> list[ImageGroup]:
    """Rollouts put together by their prompts."""
    groups = []
    for _, members in groupby(judged, key=lambda pair: id(pair[0].prompt)):
        rollouts = list(members)
        first = rollouts[0][0]
        images = [
            ScoredImage(
                episode.edited, outcome.value if isinstance(outcome, Score) else None, episode.rollout.reasoning
            )
            for episode, outcome in rollouts
        ]
        groups.append(ImageGroup(first.prompt.instruction, first.prompt.task, first.source, images))
    return groups


def draw(groups: Sequence[ImageGroup], title: str) -> Image.Image:
    """One row per group, at least one, each with a score: what was asked, the source, the best and the worst
    completion."""
    rows = [_row(group) for group in groups]
    grid = Image.new("RGB", (rows[0].width, _TITLE + sum(row.height for row in rows)), _PAPER)
    ImageDraw.Draw(grid).text((_GAP, _GAP - 4), title, _INK, _font(18))
    top = _TITLE
    for row in rows:
        grid.paste(row, (0, top))
        top += row.height
    return grid


def _row(group: ImageGroup) -> Image.Image:
    scored = sorted((a for a in group.images if a.score is not None), key=lambda one: -(one.score or 0.0))
    shown = [("source", ScoredImage(group.source, None)), (f"best {scored[0].score:.2f}", scored[0])]
    if len(scored) > 1:
        shown.append((f"worst {scored[-1].score:.2f}", scored[-1]))
    frame = max(_TEXT_HEIGHT, *(_fitted(one.image).height for _, one in shown))
    thoughts = _THOUGHT_LINES * _LINE if any(one.reasoning for _, one in shown) else 0
    row = Image.new("RGB", (_GAP + _TEXT + 3 * (_SIDE + _GAP), frame + _CAPTION + thoughts + _GAP), _PAPER)
    pen = ImageDraw.Draw(row)
    asked = _wrapped(group.instruction, _TEXT - _GAP, 16, 4)
    pen.multiline_text((_GAP, 0), asked, _INK, _font(16), spacing=6)
    failed = len(group.images) - len(scored)
    notes = [
        group.task or "",
        _wrapped("scores " + ", ".join(f"{one.score:.3g}" for one in scored), _TEXT - _GAP, 14, 2),
        f"{failed} without a score" if failed else "",
    ]
    below = pen.multiline_textbbox((_GAP, 0), asked, font=_font(16), spacing=6)[3] + 10
    pen.multiline_text((_GAP, below), "\n".join(filter(None, notes)), _SOFT, _font(14), spacing=5)
    for place, (caption, one) in enumerate(shown):
        left = _GAP + _TEXT + place * (_SIDE + _GAP)
        image = _fitted(one.image)
        row.paste(image, (left, 0))
        pen.text((left, image.height + 5), caption, _INK if place else _SOFT, _font(15))
        if one.reasoning:
            thought = _wrapped(one.reasoning, _SIDE, 12, _THOUGHT_LINES)
            pen.multiline_text((left, image.height + _CAPTION), thought, _SOFT, _font(12), spacing=4)
    return row


def _fitted(image: Image.Image) -> Image.Image:
    """At most `_SIDE` along a side: small images by a whole factor, so that their pixels stay squares."""
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
