"""Step 4 of 4: one static page that shows what a run did.

    python -m baselines.report --run-dir runs/x --candidate sft_s__rl_sc --reference sft_s

Finds every scores.parquet under the run folder with the predictions beside it, and every metrics.jsonl, and writes
report.html: a headline computed from the scores, the tables, tasks, training curves, and a gallery to filter, to sort
and to lay any two models side by side. The page needs no server and no network. Tables and charts are in its HTML and
need no JavaScript; the gallery is drawn by a script as it is scrolled, so that thousands of samples open at once. Many
pictures lie in a folder beside the page, report-pictures, which goes with it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import jinja2

from baselines.page.charts import interval_bar
from baselines.page.gallery import make_gallery
from baselines.page.headline import Finding, findings
from baselines.results.records import SCORED, VIESCORE
from baselines.results.run_folder import RunFolder, read_run_folder
from baselines.tables.averages import AVERAGE, main_rows, task_group
from baselines.tables.beside import comparison_of
from baselines.tables.bootstrap import RESAMPLES
from baselines.tables.cells import brackets, cell
from baselines.tables.published import published_judge
from baselines.tables.summary import Row, models_of, summarise
from emu3.errors import run_main
from emu3.files import whole_file
from emu3.report.charts import line_chart

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
    found.check_model(reference)
    output = output or run_dir / "report.html"
    rows = main_rows(found.scores, reference=reference, resamples=resamples, seed=seed)
    others = {
        metric: main_rows(
            scores, reference=reference if reference in models_of(scores) else None, resamples=resamples, seed=seed
        )
        for metric, scores in found.others.items()
    }
    gallery = make_gallery(found, output)
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            title=title or run_dir.resolve().name,
            findings=_findings(found, rows, candidate, reference),
            candidate=candidate,
            reference=reference,
            found=found,
            metric_name="VIEScore" if found.metric == VIESCORE else found.metric,
            columns=list(dict.fromkeys(row.split for row in rows)),
            rows=rows,
            others=others,
            beside=comparison_of(found.models, found.scores, resamples=resamples, seed=seed)
            if found.metric == VIESCORE
            else None,
            published_judge=published_judge(),
            tasks=_nested(summarise(found.scores, task_group(found.scores), resamples=resamples, seed=seed)),
            gallery=gallery,
            failed=sum(score.status != SCORED for score in found.scores),
            resamples=resamples,
            seed=seed,
        )
    )
    with whole_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _findings(found: RunFolder, rows: list[Row], candidate: str | None, reference: str | None) -> list[Finding]:
    """What the page begins with: the average where there is one, else all groups."""
    if candidate is None or reference is None or found.metric != VIESCORE:
        return []
    average = [row for row in rows if row.split.startswith(AVERAGE)]
    return findings(average or rows, candidate, reference, found.bounds)


def _nested(rows: list[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.split, []).append(row)
    return groups


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("page")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(interval_bar=interval_bar, line_chart=line_chart, cell=cell, brackets=brackets)
    environment.filters["minus"] = lambda text: re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    environment.filters["plain"] = lambda text: text.replace("`", "")
    # Compact, and in the order in which it was made.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
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
