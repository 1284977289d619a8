"""Edits of two rows side by side, not chosen by eye but by the place of their scores, as in the README's image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from baselines.figure import STYLE, draw_edits
from baselines.page.run_folder import read_run_folder
from emu3.files import whole_file
from shapes.study.cells import BENCHMARKS, benchmark_of
from shapes.study.rows import ROWS

REFERENCE, CANDIDATE = "sft_s", "sft_s__rl_sc"
SHARES = (0.75, 0.4)
"""Where in the order of the candidate's scores the edits of a benchmark stand."""


def draw(folders: tuple[Path, Path], path: Path) -> Path:
    """Write edits of each benchmark as a PNG; returns `path`. folders: with predictions and scores of `REFERENCE` and
    `CANDIDATE`, of one seed."""
    parts = [read_run_folder(folder) for folder in folders]
    rows = [row for part in parts for row in part.scores]
    found = replace(
        parts[1],
        scores=[replace(row, split=benchmark_of(row.id)[0]) for row in rows],
        predictions=[pair for part in parts for pair in part.predictions],
        models=[REFERENCE, CANDIDATE],
        labels={name: ROWS[name].label for name in (REFERENCE, CANDIDATE)},
    )
    with mpl.rc_context():
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(15, 3.5), dpi=160, facecolor="white", layout="constrained")
        draw_edits(figure, found, list(BENCHMARKS), CANDIDATE, REFERENCE, SHARES)
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
    return path
