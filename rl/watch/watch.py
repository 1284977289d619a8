"""One object that shows a run while it goes: a line per step, pictures, the report, the tracker.

Everything but the tracker lies in the run's folder. The main process alone has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.config import Config
from rl.metrics import step_seconds
from rl.reward.outcome import Outcome
from rl.scoring import Episode
from rl.watch import pictures
from rl.watch.console import Table, cells
from rl.watch.metrics_file import MetricsFile
from rl.watch.report import write_report
from rl.watch.trackers import start_tracker


class Watch:
    """Watches the run in folder `run` from step `start` on. Raises UserError if its tracker cannot begin."""

    def __init__(self, run: Path, config: Config, start: int) -> None:
        self._run = run
        self._config = config
        self._file = MetricsFile(run, start)
        self._tracker = start_tracker(config)
        self._table = Table()

    def step(self, metrics: dict[str, Any], judged: Sequence[tuple[Episode, Outcome]]) -> None:
        """Record a step. metrics: its line, see rl/README.md. judged: this rank's rollouts, those of a prompt side by
        side, each with what the judge said of it."""
        watch, step = self._config.watch, metrics["step"]
        self._file.append(metrics)
        each = step_seconds(self._file.lines)
        left = None if each is None else each * (self._config.steps - step - 1)
        print(self._table.lines(cells(metrics, self._config.steps, left)), flush=True)
        picture = None
        if watch.pictures_every and step % watch.pictures_every == 0:
            picture = pictures.write(self._run, step, judged)
        if self._tracker is not None:
            self._tracker.log(metrics, picture)
        if watch.report_every and step % watch.report_every == 0:
            write_report(self._run)

    def close(self) -> None:
        """The last edition of the report, and the end of the files."""
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()
        if self._config.watch.report_every and self._file.lines:
            write_report(self._run)
