"""What the four steps and the training left in a run folder, read for the report and the figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baselines.curves import Curve, read_curves
from baselines.editors.names import GROUND_TRUTH, NO_EDIT
from baselines.records import (
    PREDICTIONS_FILE,
    SCORES_FILE,
    Prediction,
    ScoredSample,
    read_records,
    read_settings,
)
from baselines.summary import models_of
from emu3.errors import UserError

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Training:
    """The curves of one training run, named by its folder."""

    name: str
    curves: list[Curve]


@dataclass(frozen=True)
class RunFolder:
    """Everything under `folder`. `predictions` go with the folder that their paths start from.

    `models` are in the order of the tables, `bounds` those of them that compete with nobody: no-edit, ground truth.
    """

    scores: list[ScoredSample]
    predictions: list[tuple[Path, Prediction]]
    trainings: list[Training]
    judges: list[str]
    models: list[str]
    editors: dict[str, str]

    @property
    def bounds(self) -> list[str]:
        return [model for model in self.models if self.editors[model] in (NO_EDIT, GROUND_TRUTH)]

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
    scores = [score for file in files for score in read_records(file, ScoredSample)]
    trainings = [Training(file.parent.name, read_curves(file)) for file in sorted(folder.rglob(METRICS_FILE))]
    return RunFolder(
        scores=scores,
        predictions=[
            (file.parent, row) for file in files for row in read_records(file.with_name(PREDICTIONS_FILE), Prediction)
        ],
        trainings=[training for training in trainings if training.curves],
        judges=sorted({str(read_settings(file).get("judge", "unknown")) for file in files}),
        models=models_of(scores),
        editors={score.model: score.editor for score in scores},
    )
