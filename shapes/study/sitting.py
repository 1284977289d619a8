"""One sitting of a study: which cells are wanted, which are there, and what is run to make the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from baselines.results.records import PREDICTIONS_FILE
from baselines.tables.statistics import RESAMPLES
from emu3.errors import UserError
from emu3.files import read_json, write_json
from emu3.run_folder import SettingsFile
from shapes.recipe import CORES
from shapes.stages import Stages, Task
from shapes.study import examples
from shapes.study.cells import Result, collect, failed, lengths, read_result, write_result
from shapes.study.graph import Cell, Graph
from shapes.study.page import Run, Study, write
from shapes.study.progress import StudyProgress
from shapes.study.rows import ROWS, SIZES, budgets, map_rows

_TASKS = "tasks.json"


class Sitting:
    """One call: the cells that are wanted, those that are there, and the tasks that are left."""

    def __init__(self, graph: Graph, wanted: Sequence[Cell], kept: Path) -> None:
        self.graph, self.wanted, self.kept = graph, wanted, kept
        self.results = {cell: read_result(kept / cell.file) for cell in wanted}
        self.stages: Stages

    @property
    def missing(self) -> list[Cell]:
        """Cells without scores."""
        return [cell for cell, result in self.results.items() if result is None or not result.scores]

    @property
    def tasks(self) -> list[Task]:
        """All that leads to them and is not done, cell by cell."""
        names = self.graph.closure(cell.tasks[-1] for cell in self.missing)
        return [self.graph.tasks[name] for name in names if not self.stages.is_done(name)]

    def take(self) -> None:
        """Write down the cells whose tasks are done."""
        for cell in self.missing:
            if self.stages.is_done(cell.tasks[-1]):
                own = (f"s{cell.seed}-{cell.row}", *cell.tasks[-2:])
                costs = [self.stages.done[name] for name in own if name in self.stages.done]
                home = self.graph.folder / f"s{cell.seed}"
                passes = self.graph.passes(cell.row, lengths(home / "tokens/simple", home / "init"))
                self.keep(cell, collect(cell, costs, passes, self.results[cell]))

    def fail(self, reasons: Mapping[str, str]) -> None:
        """Write down why cells failed; the first failure on the way is the reason."""
        for cell in self.missing:
            reason = next((reasons[name] for name in cell.tasks if name in reasons), None)
            if reason is not None:
                self.keep(cell, failed(cell, reason.replace(f"{self.graph.folder}/", ""), self.results[cell]))

    def keep(self, cell: Cell, result: Result) -> None:
        write_result(self.kept, result)
        self.results[cell] = result

    def others(self) -> list[Result]:
        """Kept cells that are not wanted: of other settings, rows or seeds. They were made, so they are listed."""
        wanted = {cell.file for cell in self.wanted}
        files = sorted(file for file in self.kept.glob("*.json") if file.name not in wanted)
        return [result for file in files if (result := read_result(file)) is not None]

    def examples(self) -> tuple[Path, Path] | None:
        """Where the first seed's edits by SFT (S) and RL are, if they were made on this machine."""
        made = {
            (cell.row, cell.seed): cell.folder for cell in self.wanted if (cell.folder / PREDICTIONS_FILE).is_file()
        }
        for row, seed in made:
            if row == examples.REFERENCE and (examples.CANDIDATE, seed) in made:
                return made[row, seed], made[examples.CANDIDATE, seed]
        return None

    def check(self) -> None:
        """Raise UserError where a task of the folder was done under other settings; else record those of now."""
        names = self.graph.closure(cell.tasks[-1] for cell in self.missing)
        now, file = self.graph.digests(names), self.graph.folder / _TASKS
        before = read_json(file) if file.is_file() else {}
        for name, digest in now.items():
            if self.stages.is_done(name) and before.get(name, digest) != digest:
                raise UserError(f"{self.graph.folder} holds {name} of other settings: choose another --output")
        write_json(file, before | now)


def run(
    preset: str,
    folder: Path,
    kept: Path,
    budget: str,
    seeds: Sequence[int],
    rows: Sequence[str] = (),
    samples: int | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Make what is missing of a study within its budget, and the page; returns the page's summary. Raises UserError for
    an unknown row and a folder of another study."""
    began = time.monotonic()
    sizes = SIZES[preset]
    known, plan = {**ROWS, **map_rows(sizes)}, budgets(sizes)[budget]
    unknown = [name for name in rows if name not in known]
    if unknown:
        raise UserError(f"--rows: no row {unknown[0]!r}; there are {', '.join(known)}")
    samples = samples or (plan.samples if preset == "full" else 8)
    graph = Graph(folder, sizes, known, samples)
    groups = (tuple(rows),) if rows else plan.groups
    order = [(name, seed) for group in groups for seed in seeds for name in group]
    wanted = [graph.cell(name, seed) for name, seed in dict.fromkeys(order)]
    SettingsFile(folder / "settings.json", version=1, remedy="choose another --output").record({"sizes": asdict(sizes)})
    sitting = Sitting(graph, wanted, kept)
    progress = StudyProgress(sitting.results, graph, began + plan.hours * 3600)
    sitting.stages = progress.stages = Stages(folder, CORES, progress)
    sitting.check()
    sitting.take()
    progress.on_task = sitting.take
    progress.left = sitting.tasks
    with progress:
        reasons = sitting.stages.run_all(
            sitting.tasks, graph.servers(), keep_going=True, may_start=progress.has_time_for
        )
    sitting.fail(reasons)
    runs = []
    for cell, result in sitting.results.items():
        status = "not reached" if result is None else "made" if result.scores else "failed"
        runs.append(Run(cell.row, cell.seed, status, result))
    runs += [Run(one.row, one.seed, "not of this sitting", one) for one in sitting.others()]
    return write(Study(sizes, known, samples, runs, sitting.examples()), folder, resamples)
