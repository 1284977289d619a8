"""The file of statistics that the published evaluation writes beside its scores: `NAME_viescore_stats.json`.

Its seven figures keep their names; each has the mean and the standard deviation over the scored samples (ddof 0), over
all of them, per source and per task type. Unlike there, failed samples enter no figure and are counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from baselines.results.records import ScoredSample

FIGURES = {
    "VIE_SC": "sc",
    "VIE_PQ": "pq",
    "VIE_ALL": None,
    "EDIT_SUCCESS": "edit_success",
    "OVEREDIT": "overedit",
    "LOOKS_NATURAL": "naturalness",
    "NO_ARTIFACT": "no_artifacts",
}
"""Published name of each figure, and the part of a VIEScore that it is; None is the score itself."""


def stats_name(model: str) -> str:
    """The file's name for a model, of which characters that a file system may refuse become `_`."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', model)}_viescore_stats.json"


def viescore_stats(scores: Sequence[ScoredSample]) -> dict[str, Any]:
    """`{"n", "failed", "mean": {...}, "std": {...}, "per_source": {source: ...}, "per_task_type": {task: ...}}` of the
    VIEScores of one predictions file."""
    return {
        **_figures(scores),
        "per_source": _per(scores, lambda score: score.source_set),
        "per_task_type": _per(scores, lambda score: score.task),
    }


def _per(scores: Sequence[ScoredSample], group: Callable[[ScoredSample], str]) -> dict[str, Any]:
    names = dict.fromkeys(group(score) for score in scores)
    return {name: _figures([score for score in scores if group(score) == name]) for name in names if name}


def _figures(scores: Sequence[ScoredSample]) -> dict[str, Any]:
    """Unknown figures, those over no scored sample, are null."""
    scored = [(score.value, score.parts) for score in scores if score.value is not None]
    values = {
        name: [value if part is None else parts[part] for value, parts in scored] for name, part in FIGURES.items()
    }
    return {
        "n": len(scored),
        "failed": len(scores) - len(scored),
        "mean": {name: float(np.mean(numbers)) if scored else None for name, numbers in values.items()},
        "std": {name: float(np.std(numbers)) if scored else None for name, numbers in values.items()},
    }
