"""What the four steps and the training left in a run folder, read for the report and `baselines.figure`.

Of a training's metrics.jsonl a few metrics are drawn. A step that occurs twice (a run resumed before the end of its
log) counts as it was last.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from baselines.results.records import (
    GROUND_TRUTH,
    NO_EDIT,
    PREDICTIONS_FILE,
    SCORES_FILE,
    VIESCORE,
    Prediction,
    ScoredSample,
    read_records,
    read_settings,
)
from baselines.tables.conditions import ByModel, read_scores
from baselines.tables.summary import metrics_of, models_of, of_metric
from emu3.errors import UserError
from emu3.report.charts import Curve
from emu3.report.metrics_file import NAME, read_lines
from emu3.report.run_page import Line, StepMetric, curves

SCALE_END = 10.0
"""The end of a judge's scale."""


def _value(line: Line, name: str) -> float | None:
    value = line.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


TRAINING = (
    StepMetric("Reward", "score, 0 to 10", partial(_value, name="reward"), bounds=(0.0, SCALE_END)),
    StepMetric("KL to the reference", "nats per token", partial(_value, name="kl")),
    StepMetric("Entropy", "nats per token", partial(_value, name="entropy")),
    StepMetric("Completion length", "tokens", partial(_value, name="answer_tokens")),
)
"""Metrics of a training run that are drawn, in this order."""


@dataclass(frozen=True)
class TrainingCurves:
    """The lines of one training run by step, named by its folder, and the curves of `TRAINING` that they hold."""

    name: str
    lines: Sequence[Line]
    curves: list[Curve]


@dataclass(frozen=True)
class RunFolder:
    """Everything under `folder`. `predictions` go with the folder that their paths start from.

    `metric` is the one that images are shown with, VIEScore where it was taken, and `scores` are its; `others` are
    the scores of the other metrics by name, `lower` the names of those of which less is better. `conditions` are
    those of the scores, `judges` says who judged, with which wording. `models` are in the order of the tables, `bounds`
    those of them that compete with nobody: no-edit, ground truth. `labels` are models in a reader's words.
    """

    metric: str
    scores: list[ScoredSample]
    others: dict[str, list[ScoredSample]]
    lower: set[str]
    predictions: list[tuple[Path, Prediction]]
    trainings: list[TrainingCurves]
    conditions: ByModel
    judges: list[str]
    models: list[str]
    editors: dict[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)

    def label(self, model: str) -> str:
        """The model in words: what `labels` says, or what the editor does that needs no model, or its name."""
        known = {NO_EDIT: "No edit", GROUND_TRUTH: "Ground truth"}
        return self.labels.get(model) or known.get(self.editors.get(model, ""), model)

    @property
    def bounds(self) -> list[str]:
        return [model for model in self.models if self.editors[model] in (NO_EDIT, GROUND_TRUTH)]

    @property
    def scale(self) -> float:
        """Where the bars of the metric end: at 10 for a VIEScore, else at the largest value."""
        if self.metric == VIESCORE:
            return SCALE_END
        return max((score.value for score in self.scores if score.value is not None), default=0.0) or 1.0

    def model_of(self, editor: str) -> str | None:
        """The first model of this kind of editor."""
        return next((model for model in self.models if self.editors[model] == editor), None)

    def check_model(self, name: str | None) -> None:
        """Raise `UserError` for a name that is no model here; None is fine."""
        if name is not None and name not in self.models:
            raise UserError(f"there are no scores of {name!r}, only of {', '.join(self.models)}")


def read_run_folder(folder: Path, labels: Mapping[str, str] | None = None) -> RunFolder:
    """Read every scores.parquet under `folder` with the predictions beside it, and every metrics.jsonl.

    labels: models in a reader's words, by their names. Raises `UserError` if there are no scores, predictions are
    missing, or a label is for a model that is not there.
    """
    files = sorted(folder.rglob(SCORES_FILE))
    if not files:
        raise UserError(f"there is no {SCORES_FILE} under {folder}: run baselines.score first")
    scores, conditions = read_scores(files)
    runs: dict[tuple[str, str], set[str]] = {}
    for score in scores:
        runs.setdefault((score.model, score.metric), set()).add(score.run)
    if several := next((model for (model, _), names in runs.items() if len(names) > 1), None):
        raise UserError(
            f"{folder} holds several runs of {several!r}, and a page shows the images of one: give the folder of one "
            "run; baselines.table takes them all"
        )
    settings = [read_settings(file) for file in files]
    metric, *others = metrics_of(scores)
    trainings = [read_training(file.parent) for file in sorted(folder.rglob(NAME))]
    found = RunFolder(
        metric=metric,
        scores=of_metric(scores, metric),
        others={name: of_metric(scores, name) for name in others},
        lower={name for name in (metric, *others) if any(_is_lower_better(entry, name) for entry in settings)},
        predictions=[
            (file.parent, row) for file in files for row in read_records(file.with_name(PREDICTIONS_FILE), Prediction)
        ],
        trainings=[training for training in trainings if training.curves],
        conditions=conditions,
        judges=sorted({_judge(entry) for entry in settings if "judge" in entry}),
        models=models_of(scores),
        editors={score.model: score.editor for score in scores},
        labels=labels or {},
    )
    for model in found.labels:
        found.check_model(model)
    return found


def read_training(run: Path) -> TrainingCurves:
    """The lines of a run, and the curves of those of `TRAINING` that any step has, over the steps that have them as
    finite numbers. Raises `UserError` as `read_lines`."""
    by_step = {line["step"]: line for line in read_lines(run)}
    lines = [by_step[step] for step in sorted(by_step)]
    return TrainingCurves(run.name, lines, [curve for _, curve in curves(lines, TRAINING)])


def add_label_flag(parser: argparse.ArgumentParser) -> None:
    """`--label MODEL=WORDS`, once per model; `labels` of the parsed arguments is a dict."""
    parser.add_argument(
        "--label",
        dest="labels",
        metavar="MODEL=WORDS",
        type=_label,
        action=_Labels,
        help='a model in a reader\'s words, such as sft_sc="SFT on simple and complex edits"; once per model',
    )


def _label(text: str) -> tuple[str, str]:
    model, equals, words = text.partition("=")
    if not (model and equals and words.strip()):
        raise argparse.ArgumentTypeError(f"expected MODEL=WORDS, not {text!r}")
    return model, words.strip()


class _Labels(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), values[0]: values[1]})


def _is_lower_better(settings: dict[str, Any], metric: str) -> bool:
    return not settings.get(f"metric {metric}", {}).get("higher_is_better", True)


def _judge(settings: dict[str, Any]) -> str:
    """`gpt-4o-mini-2024-07-18 (wording 1f3a99c0)`, the wording by the head of its SHA-256."""
    wording = f" (wording {settings['prompts'][:8]})" if "prompts" in settings else ""
    return f"{settings['judge']}{wording}"
