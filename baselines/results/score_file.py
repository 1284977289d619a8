"""A scores file that grows by metrics, and whose numbers never mix two ways of making them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baselines.results.records import (
    VIESCORE,
    ScoredSample,
    read_records,
    read_settings,
    refuse_other_settings,
    write_records,
)


class ScoreFile:
    """The scores file at `path` by metric, written anew after each: what was measured is not lost to the next one.

    Raises `UserError` if it is about other predictions than `settings` says.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.by_metric: dict[str, list[ScoredSample]] = {}
        if path.exists():
            self.settings = read_settings(path)
            refuse_other_settings(path, {key: self.settings.get(key) for key in settings}, settings)
            for score in read_records(path, ScoredSample):
                self.by_metric.setdefault(score.metric, []).append(score)

    def check(self, made: dict[str, Any]) -> None:
        """Raise `UserError` if the file holds scores that were made in another way than `made` says."""
        if self.settings.keys() & made.keys():
            refuse_other_settings(self.path, {key: self.settings.get(key) for key in made}, made)

    def put(self, name: str, rows: list[ScoredSample], made: dict[str, Any]) -> None:
        """Write the rows of a metric; its place in the file does not depend on what was scored first."""
        self.by_metric[name] = rows
        self.settings = self.settings | made
        order = sorted(self.by_metric, key=lambda metric: (metric != VIESCORE, metric))
        write_records(self.path, [row for metric in order for row in self.by_metric[metric]], self.settings)
