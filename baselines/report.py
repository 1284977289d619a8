"""Step 4 of 4: one static page that shows what a run did.

    python -m baselines.report --run-dir runs/x --candidate sft_s__rl_sc --reference sft_s --control sft_sc \
        --label sft_sc="SFT on simple and complex edits"

Finds every scores.parquet under the run folder with the predictions beside it, and every metrics.jsonl, and writes
report.html: a headline computed from the scores, the tables, tasks, training curves, and a gallery to filter, to sort
and to lay any two models side by side. The page needs no server and no network. Tables and charts are in its HTML and
need no JavaScript; the gallery is drawn by a script as it is scrolled, so that thousands of samples open at once. Many
images lie in a folder beside the page, report-pictures, which goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from baselines.page.gallery import make_gallery
from baselines.page.run_folder import TRAINING, RunFolder, add_label_flag, read_run_folder
from baselines.results.records import SCORED, VIESCORE
from baselines.tables.conditions import condition_lines
from baselines.tables.grid import brackets, cell, plain
from baselines.tables.paper import comparison_of, published_judge
from baselines.tables.statistics import RESAMPLES, Interval, add_resampling_flags
from baselines.tables.summary import AVERAGE, SPLIT_ORDER, Row, main_rows, models_of, summarise, task_group
from emu3.errors import run_main
from emu3.files import whole_file
from emu3.flags import CommandParser
from emu3.report.run_page import environment, panels, unmoved
from rl.reward.viescore import PARTS_NOTE

TEMPLATE = Path(__file__).parent / "page/report.html.jinja"
BAR_WIDTH, BAR_HEIGHT = 180, 16


@dataclass(frozen=True)
class Headline:
    """What the scores of one split say about two models: a sentence, and the numbers that it rests on."""

    claim: str
    evidence: str


def run(
    run_dir: Path,
    *,
    output: Path | None = None,
    title: str | None = None,
    candidate: str | None = None,
    reference: str | None = None,
    control: str | None = None,
    labels: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Path:
    """Write the report of a run folder; returns its path, RUN_DIR/report.html if not given.

    `candidate` and `reference` are the models that the headline compares; differences are taken to the reference.
    `control` is one that was given as much compute as the candidate, and stands beside it in the headline. `labels`
    are models in a reader's words. `resamples` and `seed` as for the table, which then has the same numbers. Raises
    `UserError` for a folder without scores or a model that is not there.
    """
    found = read_run_folder(run_dir, labels)
    for model in (candidate, reference, control):
        found.check_model(model)
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
        environment(TEMPLATE.parent)
        .get_template(TEMPLATE.name)
        .render(
            title=title or run_dir.resolve().name,
            findings=_findings(found, rows, candidate, reference, control, resamples, seed),
            candidate=candidate,
            reference=reference,
            control=control,
            label=found.label,
            found=found,
            metric_name="VIEScore" if found.metric == VIESCORE else found.metric,
            columns=list(dict.fromkeys(row.split for row in rows)),
            rows=rows,
            others=others,
            conditions=list(
                map(plain, condition_lines(found.conditions, found.models, judged=found.metric == VIESCORE))
            ),
            beside=comparison_of(found.models, found.scores, found.conditions, resamples=resamples, seed=seed)
            if found.metric == VIESCORE
            else None,
            published_judge=published_judge(),
            tasks=_nested(summarise(found.scores, task_group(found.scores), resamples=resamples, seed=seed)),
            trainings=[
                (training.name, panels(training.lines, TRAINING), unmoved(training.lines, TRAINING))
                for training in found.trainings
            ],
            parts_note=PARTS_NOTE if found.metric == VIESCORE else "",
            gallery=gallery,
            # Compact, and in the order in which it was made.
            data=htmlsafe_json_dumps(gallery, separators=(",", ":"), ensure_ascii=False),
            failed=sum(score.status != SCORED for score in found.scores),
            resamples=resamples,
            seed=seed,
            interval_bar=interval_bar,
            cell=cell,
            brackets=brackets,
            plain=plain,
        )
    )
    with whole_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _findings(
    found: RunFolder,
    rows: list[Row],
    candidate: str | None,
    reference: str | None,
    control: str | None,
    resamples: int,
    seed: int,
) -> list[Headline]:
    """What the page begins with: the average where there is one, else all groups."""
    if candidate is None or reference is None or found.metric != VIESCORE:
        return []
    average = [row for row in rows if row.split.startswith(AVERAGE)]
    beside = None
    if control is not None:
        both = [score for score in found.scores if score.model in (candidate, control)]
        beside = main_rows(both, reference=control, resamples=resamples, seed=seed)
    return findings(average or rows, candidate, reference, found.bounds, beside, found.label)


def _nested(rows: list[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.split, []).append(row)
    return groups


def interval_bar(mean: float | None, interval: Interval | None, end: float) -> Markup:
    """A bar from 0 to `mean` on the scale 0 to `end`, its interval as a whisker. The text beside it says the same."""
    middle, unit = BAR_HEIGHT / 2, BAR_WIDTH / end
    parts = [f'<rect class="track" x="0" y="{middle - 4}" width="{BAR_WIDTH}" height="8" rx="2"/>']
    if mean is not None:
        parts.append(
            f'<rect class="bar" x="0" y="{middle - 4}" width="{max(0.0, mean) * unit:.1f}" height="8" rx="2"/>'
        )
        parts.append(f'<circle class="mean" cx="{mean * unit:.1f}" cy="{middle}" r="3.2"/>')
    if interval is not None:
        low, high = (f"{bound * unit:.1f}" for bound in interval)
        cap = f"{middle - 5}v10"
        parts.append(f'<path class="whisker" d="M{low} {cap}M{low} {middle}H{high}M{high} {cap}"/>')
    return Markup(
        f'<svg class="interval" viewBox="-1 0 {BAR_WIDTH + 2} {BAR_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'
    )


def findings(
    rows: Sequence[Row],
    candidate: str,
    reference: str,
    bounds: Collection[str] = (),
    beside: Sequence[Row] | None = None,
    label: Callable[[str], str] = str,
) -> list[Headline]:
    """A finding per split that both models have, complex before simple.

    `rows` come from `summarise` with the same `reference`; `bounds` are models that compete with nobody (no-edit and
    ground truth). `beside`: rows of the candidate and of its control, with differences to the control. `label` gives
    a model in words. Another model that is ahead of them is named.
    """
    found = {(row.model, row.split): row for row in rows}
    control = {row.split: row for row in beside or () if row.model != candidate}
    to_control = {row.split: row for row in beside or () if row.model == candidate}
    return [
        _finding(
            found[candidate, split],
            found[reference, split],
            [row for row in rows if row.split == split and row.model not in bounds],
            (to_control[split], control[split]) if split in control and split in to_control else None,
            label,
        )
        for split in reversed(list(dict.fromkeys(row.split for row in rows)))
        if (candidate, split) in found and (reference, split) in found
    ]


def intervals_disjoint(one: Row, other: Row) -> bool:
    """Whether the two 95% intervals have no number in common; False where one is unknown."""
    if one.ci95 is None or other.ci95 is None:
        return False
    return one.ci95[0] > other.ci95[1] or other.ci95[0] > one.ci95[1]


def _finding(
    candidate: Row,
    reference: Row,
    competitors: list[Row],
    control: tuple[Row, Row] | None,
    label: Callable[[str], str],
) -> Headline:
    where, pair = _where(candidate.split), candidate.difference
    ours, theirs = label(candidate.model), label(reference.model)
    if candidate.mean is not None and reference.mean is not None and pair and pair.n > 1 and pair.ci95 is None:
        means = f"{candidate.mean:.2f} against {reference.mean:.2f}"
        same = f"{ours} and {theirs} differ by the same on all {pair.n} samples"
        return Headline(f"{where} {same}: {means}, without an interval.", "")
    if candidate.mean is None or reference.mean is None or pair is None or pair.ci95 is None:
        return Headline(f"{where} too few samples were judged to compare {ours} with {theirs}.", "")
    low, high = pair.ci95
    means = f"{candidate.mean:.2f} against {reference.mean:.2f}"
    if low <= 0 <= high:
        claim = f"{where} {ours} and {theirs} cannot be told apart: {means}."
    else:
        claim = f"{where} {ours} {'beats' if low > 0 else 'loses to'} {theirs}: {means}."
    overlap = "do not overlap" if intervals_disjoint(candidate, reference) else "overlap"
    evidence = (
        f"The difference on the same {pair.n} samples is {cell(pair.mean, pair.ci95, '+')}; "
        f"the 95% intervals of the two means {overlap}."
    )
    shown = {candidate.model, reference.model}
    if control is not None:
        more_claim, more_evidence = _beside_control(*control, label)
        claim, evidence = f"{claim} {more_claim}", f"{evidence}{more_evidence}"
        shown.add(control[1].model)
    best = max(competitors, key=lambda row: -1.0 if row.mean is None else row.mean)
    if best.model not in shown:
        evidence += f" The highest mean is that of {label(best.model)}: {cell(best.mean, best.ci95)}."
    return Headline(claim, evidence)


def _beside_control(candidate: Row, control: Row, label: Callable[[str], str]) -> tuple[str, str]:
    """What is said of the control with the same compute: a sentence of the claim, and one of the evidence."""
    ours, pair = label(candidate.model), candidate.difference
    name = f"the control with the same compute, {label(control.model)}"
    if control.mean is None or pair is None or pair.ci95 is None:
        return f"{ours} could not be compared with {name}.", ""
    low, high = pair.ci95
    verb = "cannot be told apart from" if low <= 0 <= high else "beats" if low > 0 else "loses to"
    difference = cell(pair.mean, pair.ci95, "+")
    return (
        f"{ours} {verb} {name}: {control.mean:.2f}.",
        f" The difference to the control is {difference} on {pair.n} samples.",
    )


def _where(split: str) -> str:
    if split.startswith(AVERAGE):
        return "On average"
    return f"On {split} edits" if split in SPLIT_ORDER else f"On {split}"


def main() -> None:
    parser = CommandParser(description="Write the report of a run folder.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="default: RUN_DIR/report.html")
    parser.add_argument("--title", help="default: the folder's name")
    parser.add_argument("--candidate", help="model that the headline is about")
    parser.add_argument("--reference", help="model that it is compared with")
    parser.add_argument("--control", help="model with as much compute, named beside it in the headline")
    add_label_flag(parser)
    add_resampling_flags(parser)
    print(run(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_main(main)
