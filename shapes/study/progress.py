"""How far a study is: a live table on a terminal, a line per finished run elsewhere; and what there is time for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baselines.reproduce.progress import clock
from shapes.recipe import CORES
from shapes.stages import Progress, Running, Stages, Task, last_line
from shapes.study.cells import Result
from shapes.study.graph import Cell, Graph

SLACK = 1.1
"""A task may begin if so many times what it takes is left."""


class StudyProgress(Progress, AbstractContextManager["StudyProgress"]):
    """results: what is there of each wanted cell, read at each look. graph: with the guesses of what a task takes;
    those that are done say how good these are. deadline: by `time.monotonic`. on_task: called after each task."""

    stages: Stages

    def __init__(self, results: Mapping[Cell, Result | None], graph: Graph, deadline: float) -> None:
        super().__init__()
        self._results, self._graph, self._deadline = results, graph, deadline
        self.left: Sequence[Task] = ()
        self.on_task: Callable[[], None] = lambda: None
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False) if self.live else None

    def __enter__(self) -> StudyProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def pace(self) -> float:
        """What tasks took over what was guessed, by the clock: a busy machine is slow. 1 before any is done."""
        done = {name: cost for name, cost in self.stages.done.items() if name in self._graph.costs}
        took = sum(cost["seconds"] * self._graph.tasks[name].cores for name, cost in done.items())
        return took / sum(self._graph.costs[name] for name in done) if took else 1.0

    def seconds(self, task: Task) -> float:
        """By the clock, of a task."""
        return self._graph.costs[task.name] * self.pace / task.cores

    def has_time_for(self, task: Task) -> bool:
        return time.monotonic() + SLACK * self.seconds(task) < self._deadline

    def note(self, text: str, *, live: bool = True) -> None:
        """Starts of tasks are in the live table; elsewhere what is done says enough."""
        if live and self._live is None:
            print(text, flush=True)

    def finished(self, one: Running) -> None:
        self.on_task()
        todo = self._remaining()
        self.note(f"{one.task.name}: {one.seconds:.0f} s; about {clock(todo)} left")

    def clear(self) -> None:
        """The live table stays."""

    def show(self, running: Sequence[Running]) -> None:
        if self._live is None:
            return
        seeds = sorted({cell.seed for cell in self._results})
        table = Table()
        table.add_column("mean score")
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right")
        by_place = {(cell.row, cell.seed): (cell, result) for cell, result in self._results.items()}
        for row in dict.fromkeys(cell.row for cell in self._results):
            table.add_row(
                row, *(self._cell(*by_place[row, seed], running) if (row, seed) in by_place else "" for seed in seeds)
            )
        lines = [Text(f"{one.task.name} {clock(one.seconds)} | {last_line(one.log)}", no_wrap=True) for one in running]
        self._live.update(Group(table, *lines, Text(f"about {clock(self._remaining())} left")), refresh=True)

    def _cell(self, cell: Cell, result: Result | None, running: Sequence[Running]) -> Text:
        if result is not None and result.scores:
            known = [value for values in result.scores.values() for value in values if value is not None]
            return Text(f"{fmean(known):.2f}" if known else "no score", style="green")
        own = {f"s{cell.seed}-{cell.row}", *cell.tasks[-2:]}
        if any(one.task.name in own for one in running):
            return Text("now", style="bold")
        return Text("failed", style="red") if result is not None else Text("–")

    def _remaining(self) -> float:
        """Seconds by the clock until all is done, with all cores busy."""
        left = [task for task in self.left if not self.stages.is_done(task.name)]
        return sum(self._graph.costs[task.name] for task in left) * self.pace / CORES
