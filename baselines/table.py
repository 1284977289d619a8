"""Step 3 of 4: means with intervals, from scores.

    python -m baselines.table --scores runs/x/eval/*/scores.parquet --output-dir runs/x --reference sft_s

Per model and split: the mean over the judged samples, its 95% bootstrap interval (`baselines.bootstrap`), n of them,
how many failed, and the paired difference to the reference (`baselines.summary`). Writes table.md (splits and tasks,
for reading), table.csv and tasks.csv (all figures), and summary.json (a list of rows as `Row` has them).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from baselines.bootstrap import RESAMPLES
from baselines.records import ScoredSample, read_records
from baselines.summary import Interval, Row, by_split, by_task, summarise
from emu3.errors import run_main
from emu3.files import whole_file, write_json

UNKNOWN = "–"
CSV_COLUMNS = (
    *("model", "split", "n", "failed", "mean", "ci95_low", "ci95_high"),
    *("difference_to", "difference_n", "difference", "difference_ci95_low", "difference_ci95_high"),
)


def run(
    scores: Sequence[Path],
    output_dir: Path,
    *,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Write the tables of some score files; returns the rows per split.

    `reference` is the model that differences are taken to. Raises `UserError` for a missing file, a model with two
    scores for one sample, or a reference without scores.
    """
    records = [record for path in scores for record in read_records(path, ScoredSample)]
    splits = summarise(records, by_split, reference=reference, resamples=resamples, seed=seed)
    tasks = summarise(records, by_task, reference=reference, resamples=resamples, seed=seed)
    write_json(output_dir / "summary.json", [asdict(row) for row in splits])
    _write_csv(output_dir / "table.csv", splits)
    _write_csv(output_dir / "tasks.csv", tasks)
    with whole_file(output_dir / "table.md") as temporary:
        temporary.write_text(_markdown(splits, tasks, reference, resamples, seed), encoding="utf-8")
    return splits


def cell(mean: float | None, interval: Interval | None, sign: str = "") -> str:
    """`3.10 [2.81, 3.40]`; with sign "+" a difference shows its sign. Unknown is a dash, never a zero."""
    if mean is None:
        return UNKNOWN
    return " ".join([f"{mean:{sign}.2f}", *([brackets(interval, sign)] if interval else [])])


def brackets(interval: Interval, sign: str = "") -> str:
    """`[2.81, 3.40]`"""
    return f"[{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"


def _markdown(splits: list[Row], tasks: list[Row], reference: str | None, resamples: int, seed: int) -> str:
    lines = [
        f"Mean score from 0 to 10 with its 95% interval (percentile bootstrap, {resamples:,} resamples, seed {seed}); "
        "n judged samples. Failed samples have no score and enter no mean.",
        "",
        *_by_split(splits),
    ]
    if reference is not None:
        lines += ["", f"Mean difference to `{reference}` on the same samples.", "", *_differences(splits)]
    return "\n".join([*lines, "", "By task.", "", *_by_task(tasks)]) + "\n"


def _by_split(rows: list[Row]) -> list[str]:
    """A line per model; mean, n and failed of each split side by side."""
    names = list(dict.fromkeys(row.split for row in rows))
    found = {(row.model, row.split): row for row in rows}
    columns = [title for name in names for title in (name, "n", "failed")]
    lines = [_line(["model", *columns]), _line(["---", *("---:" for _ in columns)])]
    for model in dict.fromkeys(row.model for row in rows):
        cells = [f"`{model}`"]
        for name in names:
            row = found.get((model, name))
            cells += [cell(row.mean, row.ci95), str(row.n), str(row.failed)] if row else [UNKNOWN] * 3
        lines.append(_line(cells))
    return lines


def _by_task(rows: list[Row]) -> list[str]:
    """A line per task, a column per model: there may be many tasks."""
    models = list(dict.fromkeys(row.model for row in rows))
    found = {(row.model, row.split): row for row in rows}
    lines = [_line(["task", *(f"`{model}`" for model in models)]), _line(["---", *("---:" for _ in models)])]
    for task in dict.fromkeys(row.split for row in rows):
        cells = [found.get((model, task)) for model in models]
        lines.append(_line([task, *(cell(row.mean, row.ci95) if row else UNKNOWN for row in cells)]))
    return lines


def _differences(rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(row.split for row in rows))
    found = {(row.model, row.split): row.difference for row in rows if row.difference is not None}
    lines = [_line(["model", *names]), _line(["---", *("---:" for _ in names)])]
    for model in dict.fromkeys(model for model, _ in found):
        pairs = [found.get((model, name)) for name in names]
        lines.append(_line([f"`{model}`", *(cell(pair.mean, pair.ci95, "+") if pair else UNKNOWN for pair in pairs)]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _write_csv(path: Path, rows: list[Row]) -> None:
    """One line per row; unknown figures are empty cells."""
    parts = list(dict.fromkeys(name for row in rows for name in row.parts))
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*CSV_COLUMNS, *parts])
        for row in rows:
            low, high = row.ci95 or (None, None)
            pair = row.difference
            pair_low, pair_high = (pair.ci95 if pair else None) or (None, None)
            compared = [pair.to, pair.n, pair.mean, pair_low, pair_high] if pair else [None] * 5
            figures = [row.model, row.split, row.n, row.failed, row.mean, low, high, *compared]
            writer.writerow([*figures, *(row.parts.get(name) for name in parts)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Means with intervals from score files.", allow_abbrev=False)
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="scores.parquet files, one per model")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--reference", help="model that differences are taken to")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling")
    options = vars(parser.parse_args())
    run(**options)
    print((options["output_dir"] / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_main(main)
