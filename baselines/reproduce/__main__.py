"""All models of a list on several benchmarks, to tables and a report; what it takes is said before it is spent.

    python -m baselines.reproduce --models scripts/paper_models.txt --benchmarks aurora vismin --results runs/tables \
        --judge-url http://127.0.0.1:4877/v1 --plan -- --limit 50

For `scripts/reproduce_tables.sh`, whose variables these flags are. A line of the list is NAME EDITOR [options of
baselines.evaluate]. Flags that this command does not know go to baselines.score, what follows `--` to
baselines.evaluate. Each step is that command in a process of its own, and goes on where it stopped.

Before anything is made the plan is printed (`baselines.reproduce.plan`), and what is missing for it ends the command.
On a terminal it asks whether to go on, and shows a table of all cells while it runs, the steps' own words in
RESULTS/log.txt; elsewhere these are printed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from baselines.reproduce.plan import Cell, Plan, cells_of, lines_of, plan_of
from baselines.reproduce.progress import Progress
from baselines.results.records import SCORES_FILE, VIESCORE
from baselines.tables.conditions import OURS, PROTOCOLS
from emu3.errors import PARENT, UserError, run_main
from emu3.flags import CommandParser
from emu3.settings import COUNT, SEED, number_in

NOTHING_OF_THE_PAPER = 2
"""Exit code of baselines.paper_tables where no model is one of the paper's; the report is written all the same."""


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    given, scoring = _parser().parse_known_args(words[:cut])
    prices = None if given.usd_per_million_tokens is None else tuple(given.usd_per_million_tokens)
    more = [*(["--data-dir", str(given.data_dir)] if given.data_dir else []), *words[cut + 1 :]]
    scoring = ["--metrics", *given.metrics, "--protocol", given.protocol, *scoring]
    scoring += ["--usd-per-million-tokens", *map(str, prices)] if prices and VIESCORE in given.metrics else []
    cells = cells_of(given.models, given.benchmarks, given.results, given.seed, more, scoring)
    plan = plan_of(
        cells,
        given.results,
        reply_tokens=given.reply_tokens,
        image_tokens=given.judge_image_tokens,
        seconds_per_image=given.seconds_per_image,
    )
    print("\n".join(lines_of(plan, prices, given.gpus)), flush=True)
    if plan.missing:
        count = len(plan.missing)
        things = "1 thing is" if count == 1 else f"{count} things are"
        raise UserError(f"{things} missing, nothing was made or asked; the first: {plan.missing[0]}")
    if given.plan or not (given.yes or _goes_on(plan)):
        return
    make(cells, plan, given.results, given.protocol, given.reference, given.gpus)


def make(cells: Sequence[Cell], plan: Plan, results: Path, protocol: str, reference: str | None, gpus: int) -> None:
    """Run all steps. Ends the process with the exit code of one that fails."""
    environment = {**os.environ, PARENT: str(os.getpid())}  # a step ends with this process
    python = [sys.executable, "-m"]
    launch = [*python, "emu3.launch", "--ranks", str(gpus)] if gpus > 1 else python
    with Progress(cells, results, plan.sizes) as progress:
        for cell in cells:
            steps = {
                "evaluate": [*launch, "baselines.evaluate", *cell.evaluate],
                "score": [*python, "baselines.score", *cell.score],
            }
            for step, command in steps.items():
                if code := progress.run(cell, step, command, environment):
                    sys.exit(code)
            progress.finished(cell)
    compared = ["--reference", reference] if reference else []
    scores = [str(cell.folder / SCORES_FILE) for cell in cells]
    last = [
        ["baselines.table", "--scores", *scores, "--output", str(results), *compared],
        [
            *("baselines.paper_tables", "--protocol", protocol),
            *("--results", str(results), "--output", str(results / "paper")),
        ],
        ["baselines.report", "--run-dir", str(results), *compared],
    ]
    for command in last:
        code = progress.run_plainly([*python, *command], environment)
        if code and (command[0], code) != ("baselines.paper_tables", NOTHING_OF_THE_PAPER):
            sys.exit(code)


def _goes_on(plan: Plan) -> bool:
    """What a person says to the plan; without one, and where nothing is left to pay for, it goes on."""
    whole = plan.whole
    if not (whole.images or whole.questions) or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    return input("go on? [y/N] ").strip().lower() in ("y", "yes")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="baselines.reproduce",
        description="Models on benchmarks, to tables and a report. Other flags go to baselines.score, those behind -- "
        "to baselines.evaluate.",
    )
    parser.add_argument(
        "--models", type=Path, required=True, help="a file with a line per model: NAME EDITOR [options]"
    )
    parser.add_argument("--benchmarks", nargs="+", required=True, help="names of benchmarks")
    parser.add_argument("--results", type=Path, required=True, help="folder of all runs, tables and the report")
    parser.add_argument("--metrics", nargs="+", default=[VIESCORE], help=f"default: {VIESCORE}")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=OURS, help=f"of the judge (default: {OURS})")
    parser.add_argument("--data-dir", type=Path, help="a folder with the benchmarks' files (default: the Hub)")
    parser.add_argument("--seed", type=SEED, default=0, help="of the editors (default: 0)")
    parser.add_argument(
        "--gpus",
        type=number_in(int, least=0, most=4096),
        default=0,
        help="processes that evaluate, one per GPU (default: 0, the CPU)",
    )
    parser.add_argument("--reference", help="the model that differences are taken to (default: none)")
    parser.add_argument("--plan", action="store_true", help="say what it takes, and end")
    parser.add_argument("--yes", action="store_true", help="do not ask whether to go on")
    parser.add_argument(
        "--usd-per-million-tokens",
        type=number_in(float, least=0, most=1e9),
        nargs=2,
        metavar=("QUESTION", "REPLY"),
        help="prices (default: none)",
    )
    parser.add_argument(
        "--reply-tokens",
        type=number_in(float, above=0, most=1e9),
        help="of a reply (default: as measured here, else the most)",
    )
    parser.add_argument("--judge-image-tokens", type=COUNT, help="of an image (default: the judge's rule, where known)")
    parser.add_argument(
        "--seconds-per-image",
        type=number_in(float, above=0, most=1e6),
        help="for models without images here (default: unknown until measured)",
    )
    return parser


if __name__ == "__main__":
    run_main(main)
