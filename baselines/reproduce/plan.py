"""The plan of a table: which cells it has, what is left of them, what that costs, and what is missing for it.

Nothing is made, asked or fetched here but the benchmarks, whose instructions and image sizes are counted, and the name
of the judge's model. Missing things are collected, so that a person mends them at once.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from inspect import signature
from operator import add
from pathlib import Path
from urllib.parse import urlsplit

from baselines import evaluate, score
from baselines.benchmarks.spec import benchmark_named
from baselines.editors.editing import DIFFUSERS, EDITORS, EMU3, EditorOptions
from baselines.reproduce.left import (
    DISK_ROUNDING,
    Asking,
    Benchmarked,
    Left,
    image_rule,
    left_of,
    measured_rates,
    measured_reply,
)
from baselines.results.records import VIESCORE
from emu3.checkpoint_facts import DEFAULT_AREA
from emu3.errors import UserError
from emu3.extensions import is_extension, load_extension
from emu3.hub import SAFE_FILES, SMALL_FILES, bytes_to_fetch
from rl.reward.client import API_KEY, Judge
from rl.reward.config import JudgeConfig
from rl.reward.viescore import prompts_from

KEY_NEEDED = "api.openai.com"


@dataclass(frozen=True)
class Cell:
    """A model on a benchmark. evaluate, score: the words behind those commands."""

    model: str
    benchmark: str
    folder: Path
    evaluate: list[str]
    score: list[str]


@dataclass
class Plan:
    """left: by model, and `whole` over all. sizes: samples of the cells, by their folders. missing: what has to be
    there and is not. notes: what else to know. fetch: bytes of checkpoints from the Hub. reply: tokens of a reply, and
    where that is from."""

    judge: str
    left: dict[str, Left] = field(default_factory=dict)
    sizes: dict[Path, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fetch: int = 0
    reply: tuple[float, str] = (0.0, "")

    @property
    def whole(self) -> Left:
        return reduce(add, self.left.values(), Left())

    def usd(self, prices: tuple[float, float], left: Left) -> float | None:
        """prices: of a million tokens of questions and of replies."""
        if left.tokens is None:
            return None
        return (prices[0] * left.tokens + prices[1] * left.questions * self.reply[0]) / 1e6


def cells_of(
    models: Path, benchmarks: Sequence[str], results: Path, seed: int, more: Sequence[str], scoring: Sequence[str]
) -> list[Cell]:
    """Every model of the list on every benchmark. more: for baselines.evaluate, scoring: for baselines.score.

    Raises `UserError` for a list that cannot be read, a line that is none, and unknown benchmarks.
    """
    names = {text: benchmark_named(text).name for text in benchmarks}
    try:
        lines = models.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"the list of models {models} cannot be read: {error.strerror}") from None
    cells = []
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{models}, line {number}: {error}") from None
        if not words:
            continue
        if len(words) < 2 or not (words[1] in EDITORS or is_extension(words[1])):
            raise UserError(
                f"{models}, line {number}: expected NAME EDITOR [options], EDITOR one of {', '.join(EDITORS)}"
            )
        name, editor, *options = words
        for text, benchmark in names.items():
            folder = results / benchmark / f"{name}-seed{seed}"
            own = ["--editor", editor, "--name", name, *options, "--benchmark", text, "--seed", str(seed)]
            cells.append(
                Cell(
                    name,
                    benchmark,
                    folder,
                    [*own, "--output", str(folder), *more],
                    ["--predictions", str(folder), *scoring],
                )
            )
    if not cells:
        raise UserError(f"{models} names no model")
    return cells


def plan_of(
    cells: Sequence[Cell],
    results: Path,
    *,
    reply_tokens: float | None = None,
    image_tokens: int | None = None,
    seconds_per_image: float | None = None,
) -> Plan:
    """What is left of the cells, and what of it cannot be done here. The options are the command's."""
    scoring = score.arguments_of(cells[0].score)
    judge: JudgeConfig | None = scoring["judge"] if VIESCORE in scoring["metrics"] else None
    plan = Plan("no judge" if judge is None else judge.model or "the only model that is served")
    asking: Asking | None = None
    trouble: list[str] = []
    if judge is not None:
        asking, trouble = _asking(judge, scoring["protocol"], image_tokens)
        plan.judge = asking.name or plan.judge
        plan.reply = _reply_tokens(results, asking, reply_tokens)
        if asking.rule is None:
            plan.notes.append(
                f"how many tokens an image has for {plan.judge} is not known here: JUDGE_IMAGE_TOKENS says it"
            )
    rates = measured_rates({cell.folder for cell in cells})
    weights: dict[tuple[str, tuple[str, ...], tuple[str, ...]], None] = {}
    opened: tuple[str, Benchmarked | None] = ("", None)
    for cell in sorted(cells, key=lambda cell: cell.benchmark):
        arguments = evaluate.arguments_of(cell.evaluate)
        editor, options = arguments["editor"], arguments["options"]
        data = {name: arguments[name] for name in signature(evaluate.open_samples).parameters}
        if opened[0] != repr(data):
            opened = repr(data), None  # a benchmark at a time is in memory
            with _noted(plan.missing, f"benchmark {cell.benchmark}"):
                opened = repr(data), Benchmarked(evaluate.open_samples(**data)[1])
        left = None
        with _noted(plan.missing, f"{cell.model} on {cell.benchmark}"):
            options.check(editor)
            if opened[1] is not None:
                left = left_of(
                    cell.folder,
                    editor,
                    options,
                    opened[1],
                    evaluate.rows_of(editor, opened[1].samples),
                    _area(arguments["image_area"], editor, options, plan.missing),
                    asking,
                    rates.get(cell.model, (seconds_per_image, 0))[0],
                    plan.reply[0],
                )
                plan.sizes[cell.folder] = left.of
                plan.left[cell.model] = plan.left.get(cell.model, Left()) + left
            if left is None or left.images:
                weights |= dict.fromkeys(_weights(editor, options))
    for name, patterns, needed in weights:
        with _noted(plan.missing, "checkpoint"):
            plan.fetch += bytes_to_fetch(name, patterns)
            if Path(name).is_dir() and (lacking := [file for file in needed if not any(Path(name).glob(file))]):
                raise UserError(f"{name} has no {lacking[0]}")
    if plan.whole.questions:
        plan.missing += trouble
    plan.notes += _absent_metrics([name for name in scoring["metrics"] if name != VIESCORE], scoring["weights"])
    plan.notes += [f"{model}: {n} images at {rate:.3g} s each so far" for model, (rate, n) in sorted(rates.items())]
    if plan.whole.bytes > (free := shutil.disk_usage(_existing(results)).free):
        plan.missing.append(
            f"disk: {plan.whole.bytes / 1e9:.1f} GB for images, {free / 1e9:.1f} GB are free at {results}"
        )
    return plan


def _area(given: int | None, editor: str, options: EditorOptions, missing: list[str]) -> int:
    """Pixels of the judged images; the usual ones where the checkpoint that would say so is missing."""
    if given is None:
        with _noted(missing, "checkpoint"):
            return evaluate.image_area_of(editor, options)
    return given or DEFAULT_AREA


def _asking(judge: JudgeConfig, protocol: str, image_tokens: int | None) -> tuple[Asking, list[str]]:
    """The judge as the plan knows it, and why it cannot be asked. Raises `UserError` for a protocol that it breaks."""
    if not judge.base_url:
        raise UserError("viescore needs a judge: --judge-url http://HOST:PORT/v1")
    score.check_protocol(protocol, judge, None)
    name, trouble = judge.model, []
    hosts = [urlsplit(url).hostname for url in judge.base_url.split(",")]
    if KEY_NEEDED in hosts and not (os.environ.get(API_KEY) or "").strip():
        trouble.append(f"judge: {API_KEY} is not set, which {KEY_NEEDED} asks for")
    else:
        with _noted(trouble, "judge"):
            name = asyncio.run(_served(judge))
    rule = image_rule(name or "") if image_tokens is None else lambda size: image_tokens
    return Asking(judge, name, prompts_from(judge.prompts), protocol, rule), trouble


async def _served(config: JudgeConfig) -> str:
    judge = Judge(replace(config, attempts=1))
    try:
        return await judge.model_name()
    finally:
        await judge.aclose()


def _reply_tokens(results: Path, asking: Asking, given: float | None) -> tuple[float, str]:
    if given is not None:
        return given, "as given"
    measured = measured_reply(results, asking.name)
    return (asking.config.max_tokens, "at most") if measured is None else (measured, "as measured here")


def _weights(editor: str, options: EditorOptions) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """What an editor reads, folders and Hub ids, with the patterns of its files and of those that have to be there.
    Raises `UserError` for what is not installed or cannot be."""
    if editor == EMU3:
        if options.model is None:
            raise UserError(f"editor {EMU3} needs --model")
        if options.engine == "vllm" and importlib.util.find_spec("vllm") is None:
            raise UserError("--engine vllm needs the package vllm: pip install -e '.[vllm]'")
        whole = ("config.json", "*.safetensors")
        parts = ((options.model, SAFE_FILES, whole), (options.vision, SAFE_FILES, whole))
        yield from ((name, files, needed) for name, files, needed in parts if name is not None)
        if options.tokenizer is not None:
            yield options.tokenizer, SMALL_FILES, ()
    elif editor in DIFFUSERS:
        from baselines.editors.diffusers_editors import needed_files

        name, files = needed_files(editor, options)
        yield name, tuple(files), ("model_index.json", "*/*.safetensors")
    elif is_extension(editor):
        load_extension(editor, "editor", "(model)")
    else:
        from baselines.editors.fixed import choose_fixed

        choose_fixed(editor, options)


def _absent_metrics(names: Sequence[str], weights: Path | None) -> list[str]:
    if not names:
        return []
    from baselines.metrics.image_metric import AbsentMetric, AbsentSetMetric
    from baselines.metrics.measuring import metric_named

    metrics = [metric_named(name, weights) for name in names]
    return [
        f"{name} will be left out: {metric.reason}"
        for name, metric in zip(names, metrics, strict=True)
        if isinstance(metric, AbsentMetric | AbsentSetMetric)
    ]


@contextmanager
def _noted(found: list[str], what: str) -> Iterator[None]:
    """Collects what a person can mend, so that all of it is known at once."""
    try:
        yield
    except UserError as error:
        line = f"{what}: {error}"
        if not any(known.endswith(f": {error}") for known in found):
            found.append(line)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())


def lines_of(plan: Plan, prices: tuple[float, float] | None, gpus: int) -> Iterator[str]:
    """The plan in words, for a person. prices: USD of a million tokens of questions and of replies."""
    names = ("to make", "made", "to ask", "tokens", "USD", "hours", "GB")
    rows = {**plan.left, "all": plan.whole}
    table = [("", *names)] + [(name, *_numbers(plan, left, prices)) for name, left in rows.items()]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        yield "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
    whole = plan.whole
    if whole.questions:
        tokens = round(whole.questions * plan.reply[0])
        yield f"judge {plan.judge}: replies have {plan.reply[0]:.0f} tokens each, {plan.reply[1]}: {tokens:,} tokens"
        yield (
            "money: no price given"
            if prices is None
            else (f"money: {prices[0]:g} and {prices[1]:g} USD per million tokens of questions and of replies")
        )
    if whole.picks:
        yield f"{whole.picks:,} questions more go to the judges of --best-of, whose tokens are not counted here"
    if whole.seconds is None:
        yield "hours: no rate is known of a model without images here: make some (--limit 8), or set SECONDS_PER_IMAGE"
    elif whole.seconds:
        yield (
            f"hours: of one process; {whole.seconds / 3600 / max(1, gpus):.1f} on {gpus} GPUs"
            if gpus
            else "hours: on this CPU"
        )
    if plan.fetch:
        yield f"{plan.fetch / 1e9:.1f} GB of checkpoints are fetched"
    if whole.bytes:
        yield f"disk: images and replies, within {DISK_ROUNDING:.0%}"
    yield from plan.notes
    yield from (f"missing: {line}" for line in plan.missing)


def _numbers(plan: Plan, left: Left, prices: tuple[float, float] | None) -> tuple[str, ...]:
    usd = None if prices is None else plan.usd(prices, left)
    return (
        f"{left.images:,}",
        f"{left.made:,}",
        f"{left.questions:,}",
        "unknown" if left.tokens is None else f"{left.tokens:,}",
        "–" if usd is None else f"{usd:.2f}",
        "unknown" if left.seconds is None else f"{left.seconds / 3600:.2f}",
        f"{left.bytes / 1e9:.3f}",
    )
