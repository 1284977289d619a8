"""Step 4 of 4: one static page that shows what a run did.

    python -m baselines.report --run-dir runs/x --candidate sft_s__rl_sc --reference sft_s

Finds every scores.parquet under the run folder with the predictions beside it, and every metrics.jsonl, and writes
report.html: a headline computed from the scores, the table, tasks, training curves, and a gallery to sort and filter.
The page needs no server and no network; without JavaScript it is complete, only fixed in its order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jinja2

from baselines.bootstrap import RESAMPLES
from baselines.charts import interval_bar, line_chart
from baselines.gallery import make_cards
from baselines.headline import findings
from baselines.records import SCORED
from baselines.run_folder import read_run_folder
from baselines.summary import Row, by_split, by_task, groups_of, summarise
from baselines.table import brackets, cell
from emu3.errors import run_main
from emu3.files import whole_file

TEMPLATE = "report.html.jinja"


def run(
    run_dir: Path,
    *,
    output: Path | None = None,
    title: str | None = None,
    candidate: str | None = None,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Path:
    """Write the report of a run folder; returns its path, RUN_DIR/report.html if not given.

    `candidate` and `reference` are the models that the headline compares; differences are taken to the reference.
    `resamples` and `seed` as for the table, which then has the same figures. Raises `UserError` for a folder without
    scores or a model that is not there.
    """
    found = read_run_folder(run_dir)
    found.check_model(candidate)
    output = output or run_dir / "report.html"
    rows = summarise(found.scores, by_split, reference=reference, resamples=resamples, seed=seed)
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            title=title or run_dir.resolve().name,
            findings=findings(rows, candidate, reference, found.bounds) if candidate and reference else [],
            candidate=candidate,
            reference=reference,
            found=found,
            splits=groups_of(found.scores, by_split),
            rows={(row.model, row.split): row for row in rows},
            tasks=_nested(summarise(found.scores, by_task, resamples=resamples, seed=seed)),
            cards=make_cards(found.predictions, found.scores, output),
            failed=sum(score.status != SCORED for score in found.scores),
            resamples=resamples,
            seed=seed,
        )
    )
    with whole_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _nested(rows: list[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.split, []).append(row)
    return groups


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(interval_bar=interval_bar, line_chart=line_chart, cell=cell, brackets=brackets)
    environment.filters["minus"] = lambda text: text.replace("-", "\N{MINUS SIGN}")
    return environment


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the report of a run folder.", allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="default: RUN_DIR/report.html")
    parser.add_argument("--title", help="default: the folder's name")
    parser.add_argument("--candidate", help="model that the headline is about")
    parser.add_argument("--reference", help="model that it is compared with")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling")
    print(run(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_main(main)
