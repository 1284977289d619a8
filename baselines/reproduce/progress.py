"""How far the cells of a table are: a live table on a terminal, a line per finished cell elsewhere.

Counted is what stands in the run folders, so a table that was interrupted begins where it was. While a step runs, its
lines go to the log on a terminal; the last of them is shown where it fails.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baselines.reproduce.plan import Cell
from baselines.results.predictions import count_lines
from baselines.results.records import PREDICTIONS_FILE, SCORED, SCORES_FILE
from baselines.score import QUESTIONS, REPLIES_FILE
from emu3.files import reading_parquet

LOG_FILE = "log.txt"
_SECONDS = 0.5
"""Between two looks at the folders."""


@dataclass(frozen=True)
class Counts:
    """Samples of a cell: of so many, with an image, with a score, without a score though it was asked for."""

    of: int | None
    made: int = 0
    scored: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.made} of {'?' if self.of is None else self.of} made, {self.scored} scored, {self.failed} failed"


def counts_of(folder: Path, of: int | None) -> Counts:
    """What the folder of a run holds. A step under way is counted by the lines that it has written."""
    predictions, scores = folder / PREDICTIONS_FILE, folder / SCORES_FILE
    if predictions.is_file():
        with reading_parquet(predictions):
            made = pq.read_metadata(predictions).num_rows
    else:
        made = count_lines(folder.glob("rows-*.jsonl"))
    if scores.is_file():
        with reading_parquet(scores):
            table = pq.read_table(scores, columns=["metric", "status"]).to_pylist()
        first = [row["status"] for row in table if row["metric"] == table[0]["metric"]]
        found = Counter(status == SCORED for status in first)
        return Counts(of, made, found[True], found[False])
    return Counts(of, made, count_lines([folder / REPLIES_FILE]) // QUESTIONS, 0)


class Progress(AbstractContextManager["Progress"]):
    """The cells of a table while they are made. sizes: samples of each, by folder, where they are known."""

    def __init__(self, cells: Sequence[Cell], results: Path, sizes: Mapping[Path, int]) -> None:
        self._cells = cells
        self._sizes = sizes
        self._log = results / LOG_FILE
        self._console = Console()
        self._counts = {cell.folder: counts_of(cell.folder, sizes.get(cell.folder)) for cell in cells}
        self._live = None
        if self._console.is_terminal:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def run(self, cell: Cell, step: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a step to its end; returns its exit code, 128 and the signal's number where one ended it."""
        if self._live is None:
            return _code(subprocess.run(command, env=environment).returncode)
        began, before = time.monotonic(), self._counts[cell.folder]
        with self._log.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            try:
                while process.poll() is None:
                    self._counts[cell.folder] = counts_of(cell.folder, self._sizes.get(cell.folder))
                    seconds = time.monotonic() - began
                    self._live.update(self._table(cell, step, before, seconds), refresh=True)
                    time.sleep(_SECONDS)
            finally:
                process.wait()
        if process.returncode:
            with self._log.open("rb") as log:
                log.seek(start)
                lines = log.read().decode(errors="replace").splitlines()
            self._live.stop()
            print("\n".join(lines[-5:]), file=sys.stderr)
        return _code(process.returncode)

    def run_plainly(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """As `run`, for a step that takes seconds."""
        return _code(subprocess.run(command, env=environment).returncode)

    def finished(self, cell: Cell) -> None:
        """A cell is done."""
        self._counts[cell.folder] = counts = counts_of(cell.folder, self._sizes.get(cell.folder))
        if self._live is None:
            place = self._cells.index(cell) + 1
            print(f"cell {place} of {len(self._cells)}, {cell.model} on {cell.benchmark}: {counts}", flush=True)
        else:
            self._live.update(self._table(cell, "done", counts, 0.0), refresh=True)

    def _table(self, current: Cell, step: str, before: Counts, seconds: float) -> Group:
        """A row per model, a column per benchmark; what goes on, its rate and its time left stand below."""
        now = self._counts[current.folder]
        made, scored = now.made - before.made, now.scored - before.scored
        done, left = (made, now.of and now.of - now.made) if step == "evaluate" else (scored, now.made - now.scored)
        caption = f"{current.model} on {current.benchmark}: {step}, {seconds:.0f} s"
        if done > 0 and seconds:
            caption += f", {done / seconds:.2g} a second"
            caption += "" if left is None else f", {clock(left * seconds / done)} left of this step"
        table = Table()
        table.add_column("made / scored / failed")
        benchmarks = list(dict.fromkeys(cell.benchmark for cell in self._cells))
        for name in benchmarks:
            table.add_column(name, justify="right")
        cells = {(cell.model, cell.benchmark): cell for cell in self._cells}
        for model in dict.fromkeys(cell.model for cell in self._cells):
            found = [cells[model, name] for name in benchmarks]
            table.add_row(model, *(self._shown(cell, cell is current) for cell in found))
        return Group(table, Text(caption))

    def _shown(self, cell: Cell, current: bool) -> Text:
        counts = self._counts[cell.folder]
        text = f"{counts.made} / {counts.scored} / {counts.failed}" if counts.made else "–"
        whole = counts.of is not None and counts.scored + counts.failed >= counts.of
        return Text(text, style="bold" if current else "red" if counts.failed else "green" if whole else "")


def clock(seconds: float) -> str:
    """A duration for a person."""
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes > 90
        else f"{minutes} min"
    )


def _code(code: int) -> int:
    return code if code >= 0 else 128 - code
