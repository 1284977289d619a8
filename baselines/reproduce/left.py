"""What a table will take before anything is spent: images, judge's questions, tokens, money, hours, disk.

For `baselines.reproduce`, cell by cell (a model on a benchmark). Counted is what is left: images that a run folder
lacks, and questions whose reply its cache lacks. Equal questions of a cell are asked once, so editors that give back an
image of the dataset have fewer than two per image. Nothing of a model is loaded or fetched, of an image only the size
is read; questions about images that are there are known by their pixels, as the judge's client knows them.

Tokens of a question are its text, at `BYTES_PER_TOKEN`, and its images by the judge's published rule. How long replies
will be nobody knows: the mean of what the folder's usage.jsonl holds of this judge, or what the caller says, or the
longest that is allowed. A number that cannot be counted is None, and is shown as unknown. Requests that fail and
replies that are asked for again come on top.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from baselines.benchmarks.samples import Samples
from baselines.editors.editing import COMMAND, DIFFUSERS, EMU3, FACTOR, EditorOptions, SourceFrame
from baselines.results.predictions import finished_samples
from baselines.results.records import GROUND_TRUTH, NO_EDIT, PREDICTIONS_FILE, Prediction, read_records
from baselines.score import REPLIES_FILE, USAGE_FILE
from baselines.tables.conditions import PUBLISHED
from emu3.extensions import is_extension
from emu3.tokenizer.images import image_size, read_image, scaled_size
from rl.reward.cache import ReplyCache, pixel_digest
from rl.reward.client import in_words, reply_key
from rl.reward.config import JudgeConfig
from rl.reward.scores import parse_scores, published_scores
from rl.reward.viescore import EditPrompts

BYTES_PER_TOKEN = 4
"""Of English text, about, in every vocabulary of today."""
DISK_SAMPLES = 64
"""Rows of a benchmark whose images are encoded to know the size of all."""
DISK_ROUNDING = 0.15
"""How far the disk's figure may be off, as a share of it."""
ROW_BYTES = 3000
"""Of an image's lines beside it: settings, digests, the rows of the Parquet files."""
REPLY_OVERHEAD = 120
"""Bytes of a kept reply beside its text."""

Size = tuple[int, int]


def _tiles(base: int, tile: int) -> Callable[[Size], int]:
    """OpenAI's rule for detail "high", which is what small images get: within 2,048 pixels a side and 768 the shorter
    one, never enlarged, and a count per tile of 512."""

    def count(size: Size) -> int:
        scale = min(1.0, 2048 / max(size), 768 / min(size))
        across, down = (math.ceil(round(side * scale) / 512) for side in size)
        return base + tile * across * down

    return count


def _patches(size: Size) -> int:
    """Qwen2-VL's and Qwen2.5-VL's rule at their default bounds: a token per 28 pixels squared, and two marks."""
    width, height = (max(28, round(side / 28) * 28) for side in size)
    return width * height // 784 + 2


IMAGE_RULES: Mapping[str, Callable[[Size], int]] = {
    r"gpt-4o-mini": _tiles(2833, 5667),
    r"gpt-4o(?!-mini)": _tiles(85, 170),
    r"qwen2(\.5)?-vl": _patches,
}
"""Tokens of an image by how a judge's name begins, behind its owner's."""


def image_rule(judge: str) -> Callable[[Size], int] | None:
    """Tokens of an image of some width and height for that judge; None where its rule is not known here."""
    name = judge.lower().rpartition("/")[2]
    return next((rule for pattern, rule in IMAGE_RULES.items() if re.match(pattern, name)), None)


@dataclass(frozen=True)
class Asking:
    """The judge of a plan, and how it asks. name: what the server calls it; None: not known yet. parse: finds the
    scores in a reply. rule: tokens of an image, None where they are not known."""

    config: JudgeConfig
    name: str | None
    prompts: EditPrompts
    protocol: str
    rule: Callable[[Size], int] | None

    def usable(self, reply: str | None) -> bool:
        """Whether a kept reply stands."""
        parse = published_scores if self.protocol == PUBLISHED else parse_scores
        return reply is not None and parse(reply, 2) is not None

    def tokens(self, text: str, sizes: Sequence[Size]) -> int | None:
        """Of a question."""
        words = math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
        return None if self.rule is None else words + sum(map(self.rule, sizes))


@dataclass
class Left:
    """What is left of a cell, or of several together. picks: questions to a judge that picks among several edits.
    tokens: of the questions, None if not known. made, of: images. seconds: of a process, for the images that are left;
    None if no rate is known. device: on which the rate was measured. bytes: on the disk."""

    of: int = 0
    made: int = 0
    images: int = 0
    questions: int = 0
    picks: int = 0
    tokens: int | None = 0
    seconds: float | None = 0.0
    bytes: int = 0

    def __add__(self, other: Left) -> Left:
        both: dict[str, Any] = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        sums: dict[str, Any] = {name: None if None in pair else sum(pair) for name, pair in both.items()}
        return Left(**sums)


@dataclass(frozen=True)
class Row:
    """What is known of a sample undecoded. source, target: digests of their files."""

    instruction: str
    source: str
    target: str | None
    size: Size


@dataclass
class Benchmarked:
    """A benchmark's rows, undecoded, for all models."""

    samples: Samples
    rows: list[Row] = field(init=False)
    _bytes: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = []
        for index in range(len(self.samples)):
            instruction, source, target = self.samples.undecoded(index)
            size = image_size(io.BytesIO(source))
            if 0 in size:
                size = self.samples[index].source.size
            self.rows.append(Row(instruction, _digest(source), None if target is None else _digest(target), size))

    def bytes_of_row(self, image_area: int, truth: bool) -> float:
        """Mean bytes on the disk of a row's images, over `DISK_SAMPLES` rows. truth: the edit is the target, else it
        counts as much as its source."""
        if image_area not in self._bytes:
            count = min(DISK_SAMPLES, len(self.rows))
            chosen = [place * len(self.rows) // count for place in range(count)]
            self._bytes[image_area] = [self._png_bytes(index, image_area) for index in chosen]
        parts = [part for part in self._bytes[image_area] if part[1]] if truth else self._bytes[image_area]
        return sum(sum(part) + part[1 if truth else 0] for part in parts) / max(1, len(parts))

    def _png_bytes(self, index: int, image_area: int) -> tuple[int, int, int]:
        """Of a row's source, its target (0: there is none), and what else is kept."""
        sample = self.samples[index]
        frame = SourceFrame(sample.source, image_area)
        rest = _png_bytes(frame.uncropped) if frame.uncropped.size != frame.shown.size else 0
        rest += 0 if sample.mask is None else _png_bytes(frame.fit_mask(sample.mask))
        target = 0 if sample.target is None else _png_bytes(frame.fit_target(sample.target))
        return _png_bytes(frame.shown), target, rest


def left_of(
    run: Path,
    editor: str,
    options: EditorOptions,
    benchmark: Benchmarked,
    rows: Sequence[int],
    image_area: int,
    asking: Asking | None,
    rate: float | None,
    reply_tokens: float,
) -> Left:
    """What is left of the cell in the folder `run`, which need not exist.

    rows: those that the editor edits. asking: None without a judge. rate: seconds of an image. reply_tokens: of a
    reply, for the disk. Raises `UserError` for rows and files that cannot be read.
    """
    if is_whole(run):
        done = dict(zip(rows, read_records(run / PREDICTIONS_FILE, Prediction), strict=False))
    else:
        done = finished_samples(run)
    missing = [row for row in rows if row not in done]
    left = Left(of=len(rows), made=len(rows) - len(missing), images=len(missing))
    if missing:
        left.bytes = round(len(missing) * (benchmark.bytes_of_row(image_area, editor == GROUND_TRUTH) + ROW_BYTES))
        if options.best_of is not None and options.best_of > 1:
            left.picks = 2 * options.best_of * len(missing)
        if editor in (EMU3, COMMAND, *DIFFUSERS) or is_extension(editor):
            left.seconds = None if rate is None else rate * len(missing)
    if asking is not None:
        there = [done[row] for row in rows if row in done]
        tokens = _questions(run, editor, benchmark, there, missing, image_area, asking)
        left.questions = len(tokens)
        left.tokens = None if None in tokens else sum(count or 0 for count in tokens)
        left.bytes += round(len(tokens) * (REPLY_OVERHEAD + 2 * BYTES_PER_TOKEN * reply_tokens))
    return left


def _questions(
    run: Path,
    editor: str,
    benchmark: Benchmarked,
    done: Sequence[Prediction],
    missing: Sequence[int],
    image_area: int,
    asking: Asking,
) -> list[int | None]:
    """Tokens of each question that is left of a cell."""
    mode, uncropped = in_words(asking.config), asking.protocol == PUBLISHED
    found: dict[object, int | None] = {}
    with ReplyCache(Path(asking.config.cache) if asking.config.cache else run / REPLIES_FILE) as replies:
        for sample in done:
            source = (sample.source_uncropped or sample.source) if uncropped else sample.source
            images = [read_image(run / name, str(run / name)) for name in (source, sample.edited)]
            for text, shown in _asked(asking.prompts, sample.instruction, images):
                digests = [pixel_digest(image) for image in shown]
                key = reply_key(asking.name or "", text, digests, asking.config.image_format, mode)
                if not asking.usable(replies.get(key)):
                    found[key] = asking.tokens(text, [image.size for image in shown])
    for index in missing:
        row = benchmark.rows[index]
        scaled = scaled_size(row.size, image_area, FACTOR)
        edited: Size = (scaled[0] - scaled[0] % FACTOR, scaled[1] - scaled[1] % FACTOR)
        # What is not known by its pixels is known by what it comes from.
        edit = {NO_EDIT: row.source, GROUND_TRUTH: (row.target, row.size)}.get(editor, index)
        source_size = scaled if uncropped else edited
        for text, shown in _asked(
            asking.prompts, row.instruction, [(row.source, source_size), (("edit", edit), edited)]
        ):
            found[text, *shown] = asking.tokens(text, [size for _, size in shown])
    return list(found.values())


def _asked(prompts: EditPrompts, instruction: str, images: Sequence[Any]) -> Iterable[tuple[str, Sequence[Any]]]:
    """The two questions of a VIEScore, each with its images."""
    return (prompts.edit_question(instruction), images), (prompts.quality, images[1:])


def is_whole(run: Path) -> bool:
    """Whether all images of a run are there."""
    return (run / PREDICTIONS_FILE).is_file()


def measured_rates(runs: Iterable[Path]) -> dict[str, tuple[float, int]]:
    """Seconds of an image and how many they were measured on, by model, of all that is in these folders."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        rows = read_records(run / PREDICTIONS_FILE, Prediction) if is_whole(run) else finished_samples(run).values()
        for row in rows:
            seconds.setdefault(row.model, []).append(row.seconds)
    return {model: (sum(values) / len(values), len(values)) for model, values in seconds.items()}


def measured_reply(results: Path, judge: str | None) -> float | None:
    """Mean tokens of a reply of `judge` in the usage files under `results`; None without any."""
    requests = tokens = 0
    for file in results.rglob(USAGE_FILE):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                usage = json.loads(line)
                if usage["judge"] == judge and usage["completion_tokens"]:
                    requests += usage["requests"]
                    tokens += usage["completion_tokens"]
            except (ValueError, KeyError, TypeError):
                continue
    return tokens / requests if requests else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _png_bytes(image: Image.Image) -> int:
    file = io.BytesIO()
    image.save(file, "png")
    return file.tell()
