"""The paper's tables from a folder of results, our scores beside the published ones.

    python -m baselines.paper_tables --results runs/tables --output runs/tables/paper

Takes every scores.parquet under the folder. A result stands in a table under the row that its model's name is known by
(`tables/published.json`, "models": `sft_s`, `earl`, `omnigen`, a hub id, ...). Writes table_02.md, .tex, .csv and .png,
and so on for Tables 2, 3, 6, 7 and 10 to 17, and tables.md with all of them. A model that was not run keeps its
published line, so the tables are there from the first result on. A difference is shown where judge and protocol are the
published ones (`baselines.tables.conditions`).
"""

from __future__ import annotations

from pathlib import Path

from baselines.results.records import SCORES_FILE, read_settings
from baselines.tables.conditions import PROTOCOLS, conditions_of, read_scores
from baselines.tables.grid import draw, to_csv, to_latex, to_markdown
from baselines.tables.paper import compare, tables
from baselines.tables.statistics import RESAMPLES, add_resampling_flags
from baselines.tables.summary import by_benchmark, cells_of, metrics_of, models_of, of_metric
from emu3.errors import UserError, run_main
from emu3.files import whole_file
from emu3.flags import CommandParser


def run(
    results: Path, output: Path, *, protocol: str | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> list[Path]:
    """Write all tables; returns the paths of their Markdown.

    protocol: take the scores made by this one only. Raises `UserError` if there are no such scores under `results`,
    none of a model that the paper has a row for, or two for one sample of a model.
    """
    files = sorted(results.rglob(SCORES_FILE))
    if not files:
        raise UserError(f"there is no {SCORES_FILE} under {results}: run baselines.score first")
    if protocol is not None:
        files = [file for file in files if conditions_of(read_settings(file)).protocol in (protocol, "")]
        if not files:
            raise UserError(
                f"no {SCORES_FILE} under {results} was made by the protocol {protocol!r}: see baselines.score"
            )
    scores, conditions = read_scores(files)
    for metric in metrics_of(scores):
        cells_of(of_metric(scores, metric), by_benchmark)
    grids = [(table, compare(table, scores, conditions, resamples=resamples, seed=seed)) for table in tables()]
    if not any("ours" in row for _, grid in grids for row in grid.rows):
        models = ", ".join(models_of(scores))
        raise UserError(f"the paper has no row for what is under {results}: the models are called {models}")
    written, texts = [], []
    for table, grid in grids:
        path = output / f"table_{table.number:02d}.md"
        texts.append(to_markdown(grid))
        for suffix, text in ((".md", texts[-1]), (".tex", to_latex(grid)), (".csv", to_csv(grid))):
            with whole_file(path.with_suffix(suffix)) as temporary:
                temporary.write_text(text, encoding="utf-8")
        draw(grid, path.with_suffix(".png"))
        written.append(path)
    with whole_file(output / "tables.md") as temporary:
        temporary.write_text("\n".join(texts), encoding="utf-8")
    return written


def main() -> None:
    parser = CommandParser(description="The paper's tables beside results of one's own.")
    parser.add_argument("--results", type=Path, required=True, help="folder with scores.parquet files somewhere in it")
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="take the scores made by this one only (default: all)")
    add_resampling_flags(parser)
    for path in run(**vars(parser.parse_args())):
        print(path)


if __name__ == "__main__":
    run_main(main)
