"""Step 3 of 4: means with intervals, from scores.

    python -m baselines.table --scores runs/x/eval/*/scores.parquet --output-dir runs/x --reference sft_s
    python -m baselines.table --scores runs/seed-*/eval/*/scores.parquet --output-dir runs/seeds --reference sft_s

Side by side stand the benchmarks, with their average at the end, or the splits of a single one. A cell is the mean
over the scored samples with its 95% interval (`baselines.tables.statistics`), n of them, and how many failed; what a
reader should know before believing it (`baselines.tables.cautions`). Files of one model that differ in the seed, or in
the weights, are several runs of it: one row with an interval over runs, and a table run by run. Then the paired
difference to the reference (`baselines.tables.summary`), our difference to the paper where it has the
model and the conditions are its own (`baselines.tables.paper`), and the same by task and by source. Under the published
protocol a further column counts failures as 0, as the published evaluation did; nothing else is made of it. Every table
ends with the conditions of its scores (`baselines.tables.conditions`).

Writes table.md and table.tex with all of it, table.png (the main table), table.csv, tasks.csv and, where a benchmark
has parts, sources.csv (all numbers, one line each), and summary.json (the main table's rows of the first metric, as
`Row` has them).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from baselines.results.records import VIESCORE, WHOLE_SET, ScoredSample
from baselines.tables.cautions import cautions, disagreements, shown_name
from baselines.tables.conditions import PUBLISHED, ByModel, condition_lines, of_model, read_scores
from baselines.tables.grid import UNKNOWN, Grid, brackets, cell, code, csv_cell, draw, number, to_latex, to_markdown
from baselines.tables.paper import benchmarks, comparison_of, row_of
from baselines.tables.statistics import RESAMPLES, add_resampling_flags
from baselines.tables.summary import (
    Difference,
    Row,
    main_rows,
    metrics_of,
    models_of,
    of_metric,
    source_group,
    summarise,
    task_group,
)
from emu3.errors import UserError, run_main
from emu3.files import whole_file, write_json
from emu3.flags import CommandParser
from emu3.settings import number_in

CSV_COLUMNS = (
    *("metric", "model", "split", "n", "failed", "mean", "ci95_low", "ci95_high"),
    *("difference_to", "difference_n", "difference", "difference_ci95_low", "difference_ci95_high"),
    *("published", "difference_to_published", "not_compared"),
    *("mean_failures_as_0", "source_images", "runs", "nested_low", "nested_high", "equal_within_margin"),
)
CONDITIONS = ("judge", "wording", "protocol", "temperature", "image_format", "judge_seed", "date", "editor", "weights")
"""Columns of the CSV files, after the numbers: fields of `Conditions`, and `seed` and `options` of the editor."""


def run(
    scores: Sequence[Path],
    output_dir: Path,
    *,
    reference: str | None = None,
    margin: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Write the tables of some score files; returns the main table's rows of the first metric, VIEScore if it is there.

    `reference` is the model that differences are taken to; a model whose interval lies within `margin` points around 0
    is called equal to it. Raises `UserError` for a missing file, a model with two
    scores for one sample, or a reference without scores.
    """
    if margin is not None and not margin > 0:
        raise UserError(f"--margin {margin}: a margin is above 0, in points of the score")
    records, conditions = read_scores(scores)
    if not records:
        raise UserError(f"there are no scores in {', '.join(map(str, scores))}")
    metrics = metrics_of(records)
    if reference is not None and reference not in (models := models_of(records)):
        raise UserError(f"no model {reference!r} to compare with; there are {', '.join(models)}")
    mains: dict[str, list[Row]] = {}
    tasks: dict[str, list[Row]] = {}
    sources: dict[str, list[Row]] = {}
    for metric in metrics:
        own = of_metric(records, metric)
        mains[metric] = main_rows(own, reference=_present(reference, own), resamples=resamples, seed=seed)
        single = [score for score in own if score.id != WHOLE_SET]
        in_parts = [score for score in single if score.source_set != score.task and score.source_set]
        for found, members, group in ((tasks, single, task_group(own)), (sources, in_parts, source_group(own))):
            known = _present(reference, members)
            found[metric] = summarise(members, group, reference=known, resamples=resamples, seed=seed)

    sections = _sections(records, conditions, mains, tasks, sources, reference, margin, resamples, seed)
    with whole_file(output_dir / "table.md") as temporary:
        temporary.write_text("\n".join(map(to_markdown, sections)), encoding="utf-8")
    with whole_file(output_dir / "table.tex") as temporary:
        temporary.write_text("\n".join(map(to_latex, sections)), encoding="utf-8")
    draw(sections[0], output_dir / "table.png")
    _write_csv(output_dir / "table.csv", mains, conditions, margin)
    _write_csv(output_dir / "tasks.csv", tasks, conditions, margin)
    if any(sources.values()):
        _write_csv(output_dir / "sources.csv", sources, conditions, margin)
    write_json(output_dir / "summary.json", [asdict(row) for row in mains[metrics[0]]])
    return mains[metrics[0]]


def _present(reference: str | None, scores: Sequence[ScoredSample]) -> str | None:
    """The reference, unless a metric has nothing of it: those against a target lack editors without targets."""
    return reference if reference in models_of(scores) else None


def _sections(
    records: Sequence[ScoredSample],
    conditions: ByModel,
    mains: dict[str, list[Row]],
    tasks: dict[str, list[Row]],
    sources: dict[str, list[Row]],
    reference: str | None,
    margin: float | None,
    resamples: int,
    seed: int,
) -> list[Grid]:
    """All that table.md shows, metric by metric; what would be empty is left out."""
    grids: list[Grid] = []
    for metric, rows in mains.items():
        about = condition_lines(conditions, [row.model for row in rows], judged=metric == VIESCORE)
        begins = len(grids)
        name = "Score from 0 to 10" if metric == VIESCORE else metric
        own = of_metric(records, metric)
        how = how_measured(rows, resamples, seed)
        if all(score.value is None for score in own):
            nothing = f"Nothing was scored: {own[0].detail or own[0].status}."
            grids.append(_main_grid(name, rows, metric, nothing, conditions))
            continue
        known = cautions(own, rows, conditions) if metric == VIESCORE else []
        grids.append(replace(_main_grid(name, rows, metric, how, conditions), conditions=(*known, *about)))
        if any(row.runs for row in rows):
            grids.append(_run_grid(f"{name}, run by run", rows, metric))
        if any(row.difference for row in rows):
            grid = _difference_grid(f"{name}, difference", rows, metric, margin)
            grids.append(replace(grid, conditions=(*disagreements(tasks[metric]), *about)))
        if metric == VIESCORE:
            models = list(dict.fromkeys(row.model for row in rows))
            beside = comparison_of(models, own, conditions, resamples=resamples, seed=seed)
            grids += [beside] if beside else []
        for title, groups in (("by task", tasks[metric]), ("by source", sources[metric])):
            if groups:
                grids.append(_group_grid(f"{name}, {title}", title.split()[-1], groups, metric))
        grids[begins:] = [grid if grid.conditions else replace(grid, conditions=about) for grid in grids[begins:]]
    return grids


def how_measured(rows: Sequence[Row], resamples: int, seed: int) -> str:
    """What an interval of the main table is about."""
    alone = (
        "An interval of one run tells how far its mean would move with other samples (this checkpoint, these samples), "
        "nothing of another seed."
    )
    several = (
        "The interval of several runs is Student's t over their means, with the part that their common samples have "
        "(these seeds, these samples)."
    )
    return " ".join(
        [
            f"Mean with its 95% interval (bootstrap over source images by percentiles, {resamples:,} resamples, "
            f"seed {seed});",
            "n scored samples. Failed samples have no score and enter no mean.",
            *([alone] if any(not row.runs for row in rows) else []),
            *([several] if any(row.runs for row in rows) else []),
        ]
    )


def _main_grid(title: str, rows: list[Row], metric: str, note: str, conditions: ByModel) -> Grid:
    """A line per model; mean, n and failed of each group side by side, and for models of the published protocol the
    mean with failures as 0."""
    published = [model for (model, _), found in conditions.items() if found.protocol == PUBLISHED]
    with_zeros = published if metric == VIESCORE else []
    names = list(dict.fromkeys(row.split for row in rows))
    heads = ["n", "failed", *(["failures as 0"] if with_zeros else [])]
    found = {(row.model, row.split): row for row in rows}
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        cells = [shown_name(model, conditions) if metric == VIESCORE else code(model)]
        for name in names:
            row = found.get((model, name))
            known = [cell(row.mean, row.ci95, metric=metric), str(row.n), str(row.failed)] if row else [UNKNOWN] * 3
            zeros = cell(row.mean_with_zeros, None) if row is not None and model in with_zeros else UNKNOWN
            cells += [*known, *([zeros] if with_zeros else [])]
        lines.append(cells)
    return Grid(title, ["model", *(head for name in names for head in (name, *heads))], lines, note)


def _run_grid(title: str, rows: list[Row], metric: str) -> Grid:
    """A line for each mean, and each difference, of several runs."""
    lines = []
    for row in rows:
        pair = row.difference
        for name, one in ((code(row.model), row), (f"{code(row.model)} - {code(pair.to if pair else '')}", pair)):
            if one is not None and one.runs:
                sign = "+" if one is pair else ""
                each = ", ".join(f"{run}: {number(mean, metric, sign)}" for run, mean in one.runs.items())
                drawn = brackets(one.nested, sign, metric) if one.nested else UNKNOWN
                lines.append([name, row.split, cell(one.mean, one.ci95, sign, metric), drawn, each])
    note = (
        "Mean over runs with its interval by Student's t; beside it by the hierarchical bootstrap, which draws runs "
        "and source images and is too narrow for few runs."
    )
    return Grid(title, ["model", "on", "mean", "drawn", "runs"], lines, note)


def _difference_grid(title: str, rows: list[Row], metric: str, margin: float | None) -> Grid:
    names = list(dict.fromkeys(row.split for row in rows))
    found = {(row.model, row.split): row.difference for row in rows if row.difference is not None}
    lines = []
    for model in dict.fromkeys(model for model, _ in found):
        cells = [code(model)]
        for name in names:
            pair = found.get((model, name))
            equal = " (equal)" if pair and is_equal(pair, margin) else ""
            cells += [cell(pair.mean, pair.ci95, "+", metric) + equal, str(pair.n)] if pair else [UNKNOWN] * 2
        lines.append(cells)
    count = sum(pair.ci95 is not None for pair in found.values())
    alike = (
        "an interval that holds 0 does not show that two models are alike; --margin says what would"
        if margin is None
        else f"equal: the interval lies within {margin:g} around 0"
    )
    note = (
        f"Mean difference to {code(next(iter(found.values())).to)} on the same samples, so many pairs of them. Each of "
        f"{count} intervals is 95% by itself: not adjusted for their number; {alike}."
    )
    return Grid(title, ["model", *(head for name in names for head in (name, "pairs"))], lines, note)


def is_equal(pair: Difference, margin: float | None) -> bool:
    """Whether a difference lies within `margin` around 0 with its whole 95% interval."""
    return margin is not None and pair.ci95 is not None and -margin < pair.ci95[0] and pair.ci95[1] < margin


def _group_grid(title: str, head: str, rows: list[Row], metric: str) -> Grid:
    """A line per task or source, a column per model: there may be many of them."""
    models = list(dict.fromkeys(row.model for row in rows))
    found = {(row.model, row.split): row for row in rows}
    lines = []
    for name in dict.fromkeys(row.split for row in rows):
        cells = [found.get((model, name)) for model in models]
        lines.append([name, *(cell(row.mean, row.ci95, metric=metric) if row else UNKNOWN for row in cells)])
    return Grid(title, [head, *(code(model) for model in models)], lines)


def _write_csv(path: Path, groups: dict[str, list[Row]], conditions: ByModel, margin: float | None) -> None:
    """One line per row; unknown numbers are empty cells."""
    rows = [(metric, row) for metric, metric_rows in groups.items() for row in metric_rows]
    parts = list(dict.fromkeys(name for _, row in rows for name in row.parts))
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*CSV_COLUMNS, *map(csv_cell, parts), *CONDITIONS, "seed", "options"])
        for metric, row in rows:
            low, high = row.ci95 or (None, None)
            pair = row.difference
            pair_low, pair_high = (pair.ci95 if pair else None) or (None, None)
            compared = [pair.to, pair.n, pair.mean, pair_low, pair_high] if pair else [None] * 5
            about = of_model(conditions, row.model)
            published = _published(metric, row)
            reason = about.difference_means_nothing if published is not None else ""
            beyond = row.mean - published if published is not None and row.mean is not None and not reason else None
            zeros = row.mean_with_zeros if metric == VIESCORE and about.protocol == PUBLISHED else None
            cells = [metric, row.model, row.split, row.n, row.failed, row.mean, low, high, *compared]
            equal = is_equal(pair, margin) if pair is not None and margin is not None else None
            cells += [
                published,
                beyond,
                reason,
                zeros,
                row.images,
                max(1, len(row.runs)),
                *(row.nested or (None, None)),
            ]
            cells += [equal, *(row.parts.get(name) for name in parts)]
            names = (*(CONDITIONS if metric == VIESCORE else ("",) * 7 + CONDITIONS[7:]), "seed", "options")
            cells += [getattr(about, name) if name else "" for name in names]
            writer.writerow([csv_cell(text) if isinstance(text, str) else text for text in cells])


def _published(metric: str, row: Row) -> float | None:
    """The paper's score for a cell of the main table."""
    found = row_of(row.model) if metric == VIESCORE else None
    titles = [*benchmarks().values(), "AVG"]
    return found.cells[titles.index(row.split)] if found is not None and row.split in titles else None


def main() -> None:
    parser = CommandParser(old={"--output-dir": "--output"}, description="Means with intervals from score files.")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="scores.parquet files, one per model")
    parser.add_argument("--output", dest="output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--reference", help="model that differences are taken to")
    parser.add_argument(
        "--margin",
        type=number_in(float, least=0, most=10),
        help="points of the score within which a difference is called equal (default: none is)",
    )
    add_resampling_flags(parser)
    options = vars(parser.parse_args())
    run(**options)
    print((options["output_dir"] / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_main(main)
