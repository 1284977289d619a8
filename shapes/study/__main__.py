"""The paper's tables and claims in the embedded world, over seeds: a graph of runs, and a page of what there is.

    bash scripts/study.sh --budget 30m             five rows of one seed
    bash scripts/study.sh --budget 3h              Table 2's rows on six benchmarks, and a map at four noise levels
    bash scripts/study.sh --budget night           what fits ten hours, the more useful first
    bash scripts/study.sh --budget page            runs nothing: the page of all that is there
    bash scripts/study.sh --preset smoke           a handful of steps of each run: shows that it runs, and nothing else
    bash scripts/study.sh --first-seed 0           a development seed, on rows of its own: to choose settings on

Each run is a command that a person could type, with its log in `logs/`. What several rows need is made once. Each row
of each seed leaves one small file in `--cells`; cells that are there are not made again, whoever made them, and a study
that was interrupted continues. No run begins that would not end within the budget; what is there then makes the page.
"""

from __future__ import annotations

from pathlib import Path

from emu3.errors import run_main
from emu3.flags import CommandParser
from emu3.run_folder import owned
from emu3.settings import COUNT, SEED
from shapes.stages import exit_on_signals
from shapes.study.rows import REPORTED, SIZES, budgets

KEPT = Path("assets/study/cells")


def main() -> None:
    parser = CommandParser(old={"--output-dir": "--output"}, description=__doc__)
    parser.add_argument(
        "--budget", choices=list(budgets(SIZES["full"])), default="all", help="time (default: no end; page: none)"
    )
    parser.add_argument("--seeds", type=COUNT, help="so many (default: the budget's, 1 or 3)")
    parser.add_argument("--first-seed", type=SEED, default=REPORTED, help="below 10: development (default 10)")
    parser.add_argument("--rows", nargs="+", default=(), metavar="ROW", help="these alone (default: the budget's)")
    parser.add_argument("--samples", type=COUNT, help="of each benchmark (default: the budget's, 100 or 200)")
    parser.add_argument("--preset", choices=SIZES, default="full", help="sizes of the runs")
    parser.add_argument("--output", dest="folder", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--cells", type=Path, help=f"folder of the results (default: {KEPT}, of smoke in --output)")
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    kept = (options.cells or (KEPT if options.preset == "full" else folder / "cells")).absolute()
    count = options.seeds or (budgets(SIZES[options.preset])[options.budget].seeds if options.preset == "full" else 1)
    seeds = range(options.first_seed, options.first_seed + count)
    exit_on_signals()
    from shapes.study.sitting import run  # not for --help: it brings tables and charts

    with owned(folder):
        summary = run(options.preset, folder, kept, options.budget, seeds, options.rows, options.samples)
    for claim in summary["claims"]:
        print(f"{claim['verdict']:<14} {claim['claim']}")
    made = sum(one["status"] == "made" for one in summary["runs"])
    print(f"{made} of {len(summary['runs'])} runs; open {folder / 'study.html'}")


if __name__ == "__main__":
    run_main(main)
