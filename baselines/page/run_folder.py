"""What the four steps and the training left in a run folder, read for the report and `baselines.figure`.

Of a training's metrics.jsonl a few metrics are drawn. A step that occurs twice (a run resumed before the end of its
log) counts as it was last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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


TRAINING = tuple(
    StepMetric(title, "", partial(_value, name=name))
    for name, title in {
        "reward": "Reward",
        "kl": "KL to the reference",
        "entropy": "Entropy",
        "answer_tokens": "Completion length in tokens",
    }.items()
)
"""Metrics of a training run that are drawn, in this order."""


@dataclass(frozen=True)
class TrainingCurves:
    """The curves of one training run, named by its folder."""

    name: str
    curves: list[Curve]


@dataclass(frozen=True)
class RunFolder:
    """Everything under `folder`. `predictions` go with the folder that their paths start from.

    `metric` is the one that images are shown with, VIEScore where it was taken, and `scores` are its; `others` are
    the scores of the other metrics by name, `lower` the names of those of which less is better. `conditions` are
    those of the scores, `judges` says who judged, with which wording. `models` are in the order of the tables, `bounds`
    those of them that compete with nobody: no-edit, ground truth.
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


def read_run_folder(folder: Path) -> RunFolder:
    """Read every scores.parquet under `folder` with the predictions beside it, and every metrics.jsonl.

    Raises `UserError` if there are no scores, or predictions are missing.
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
    trainings = [TrainingCurves(file.parent.name, read_curves(file.parent)) for file in sorted(folder.rglob(NAME))]
    return RunFolder(
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
    )


def read_curves(run: Path) -> list[Curve]:
    """The curves of those of `TRAINING` that any step of the run has, over the steps that have them as finite numbers.
    Raises `UserError` as `read_lines`."""
    by_step = {line["step"]: line for line in read_lines(run)}
    return [curve for _, curve in curves([by_step[step] for step in sorted(by_step)], TRAINING)]


def _is_lower_better(settings: dict[str, Any], metric: str) -> bool:
    return not settings.get(f"metric {metric}", {}).get("higher_is_better", True)


def _judge(settings: dict[str, Any]) -> str:
    """`gpt-4o-mini-2024-07-18 (wording 1f3a99c0)`, the wording by the head of its SHA-256."""
    wording = f" (wording {settings['prompts'][:8]})" if "prompts" in settings else ""
    return f"{settings['judge']}{wording}"
