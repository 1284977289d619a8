"""One object that shows a run while it goes: a line per step, grids of images, the report, the tracker.

Everything but the tracker lies in the run's folder. The main process alone has one. What cannot be written, on a full
disk, costs the run nothing.

In the table `latency` is the judge's, in seconds, `const` the share of groups of equal scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emu3.report.console import Table, duration, seconds, short, shown, step_of
from emu3.report.metrics_file import NAME, MetricsFile, Spared, Tracker, lines_before
from emu3.report.run_page import REPORT
from rl.config import Config
from rl.metrics import step_seconds, tokens_per_second
from rl.reward.scores import Outcome
from rl.scoring import Episode
from rl.watch import pictures
from rl.watch.report import write_report


class Watch:
    """Watches the run in folder `run` from step `start` on: the lines of that step and later ones are dropped. Raises
    UserError if its tracker cannot begin."""

    def __init__(self, run: Path, config: Config, start: int) -> None:
        self._run = run
        self._config = config
        self._file = MetricsFile(run, lines_before(run, start))
        self._spared = Spared()
        self._tracker = start_tracker(config)
        self._table = Table()

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
        picture = None
        if watch.pictures_every and step % watch.pictures_every == 0:
            with self._spared.output("grid of images"):
                picture = pictures.write(self._run, step, judged)
        if self._tracker is not None:
            self._tracker.log({"tokens_per_second": tokens_per_second(metrics), **metrics}, picture)
        if watch.report_every and step % watch.report_every == 0:
            self._write_report()

    def close(self) -> None:
        """The last edition of the report, and the end of the tracker's run."""
        if self._tracker is not None:
            self._tracker.close()
        if self._config.watch.report_every and self._file.lines:
            self._write_report()

    def _write_report(self) -> None:
        with self._spared.output(REPORT):
            write_report(self._run)


def start_tracker(config: Config) -> Tracker | None:
    """The tracker that the config asks for, None if it asks for none. `rl.config` has checked that it is installed."""
    name = config.watch.tracker
    if name is None:
        return None
    return Tracker(name, config.watch.project, config.run_name, asdict(config), option="watch.tracker")


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
