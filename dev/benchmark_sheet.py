"""Four rows of each embedded benchmark as one image for the documents: python -m dev.benchmark_sheet

The rows are the first of the development rows in which a task occurs that is not shown yet, so no eye chose them.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from emu3.files import whole_file
from emu3.flags import CommandParser
from shapes.benchmarks import BENCHMARKS, make_row

EACH = 4
INK, SOFT = "#1b1d21", "#5c636e"


def rows(name: str) -> list[dict[str, Any]]:
    """`EACH` rows of a benchmark, of as many tasks as it has."""
    candidates = [make_row(name, 0, True, number) for number in range(60)]
    first = {row["task"]: row for row in reversed(candidates)}
    return [*first.values(), *(row for row in candidates if row not in first.values())][:EACH]


def sheet(output: Path) -> None:
    """Write the image: a line per benchmark; source and target side by side, the instruction below them."""
    figure = Figure(figsize=(12.4, 1.62 * len(BENCHMARKS)), dpi=110, layout="constrained")
    grid = figure.subplots(len(BENCHMARKS), EACH)
    for line, name in zip(grid, BENCHMARKS, strict=True):
        for place, (axes, row) in enumerate(zip(line, rows(name), strict=True)):
            source, target = (np.asarray(Image.open(io.BytesIO(row[key]["bytes"]))) for key in ("input", "output"))
            gap = np.full((source.shape[0], 4, 3), 255, np.uint8)
            axes.imshow(np.concatenate([source, gap, target], 1), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.set_xlabel(textwrap.fill(row["instruction"], 44), fontsize=8.5, color=INK)
            if not place:
                axes.set_ylabel(name, fontsize=10.5, fontweight="bold", color=INK)
            axes.set_title(row["task"], fontsize=8, color=SOFT, loc="left", pad=3)
    with whole_file(output) as temporary:
        figure.savefig(temporary, format="png")


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("assets/benchmarks.png"), help="image to write")
    sheet(parser.parse_args().output)


if __name__ == "__main__":
    main()
