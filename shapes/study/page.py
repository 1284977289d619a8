"""The page of a study, made of its cells alone: claims, the map, tables beside the published ones, compute, every run.

Writes `study.md`, `study.tex`, `study.html`, `table.png`, `map.png`, `examples.png` and `summary.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from baselines.table import how_measured
from baselines.tables import grid as grids
from baselines.tables.cautions import PICKED
from baselines.tables.conditions import JOINED, merged
from baselines.tables.grid import UNKNOWN, Grid
from baselines.tables.grid import brackets as shown_interval
from baselines.tables.paper import row_of
from baselines.tables.statistics import RESAMPLES
from baselines.tables.summary import Row as Mean
from baselines.tables.summary import main_rows
from emu3.files import whole_file, write_json
from emu3.report.charts import line_chart
from emu3.report.run_page import Panel, environment
from shapes.study import claims, crossing, examples
from shapes.study.cells import BENCHMARKS, Result
from shapes.study.rows import TARGET_NOISE, Rl, Row, Sizes

TITLES = {
    2: "Table 2: orders of training",
    3: "Table 3: chain of thought",
    6: "Table 6: weak judges",
    11: "Table 11: best of 5",
}
MARKS = {claims.HOLDS: "holds", claims.DOES_NOT: "against", claims.UNDECIDED: "open"}


@dataclass(frozen=True)
class Run:
    """A cell: `made`, `failed` or `not reached`; or kept beside those that were wanted, `not of this sitting`."""

    row: str
    seed: int
    status: str
    result: Result | None


@dataclass(frozen=True)
class Study:
    """rows: all there are; runs: the cells, made or not. examples: folders for `shapes.study.examples`, if they are
    here."""

    sizes: Sizes
    rows: Mapping[str, Row]
    samples: int
    runs: Sequence[Run]
    examples: tuple[Path, Path] | None = None

    @property
    def results(self) -> dict[tuple[str, int], Result]:
        return {(run.row, run.seed): run.result for run in self.runs if run.status == "made" and run.result}


def write(study: Study, folder: Path, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Write the page of what there is; returns the summary."""
    results = study.results
    on_tables = {key: result for key, result in results.items() if study.rows[key[0]].table}
    means = _means(on_tables, resamples)
    data = study.sizes.preset.data
    here = next(
        (noise for noise, made in TARGET_NOISE.items() if made == (data.nuisance_share, data.nuisance_strength)), 0.7
    )
    lines = crossing.lines_of(results, study.rows, here, float(data.complex))
    crossed = crossing.crossings(lines, resamples)
    noise = f"{data.nuisance_share:.0%} of complex targets have {data.nuisance_strength} unrelated "
    noise += "change" if data.nuisance_strength == 1 else "changes"

    def where(claim: claims.Claim) -> str:
        on_map = crossing.levels(lines.get("target noise", {}), *claim.on_map, resamples) if claim.on_map else ""
        return f"{noise}. On the map, over unrelated changes: {on_map}" if on_map else noise

    judged = claims.judged(on_tables, where, resamples)
    averages = {name: row[-1].mean for name, row in means.items() if row[-1].mean is not None}
    ranks = claims.rank_correlation(averages) if averages else None
    about = _about(study)
    tables = [_claims_grid(judged, ranks, about), *_tables(study, means, about, resamples)]
    tables += [_map_grid(lines, resamples), _compute_grid(study), _runs_grid(study)]
    tables = [grid for grid in tables if grid.rows]
    shown = ["![The map](map.png)\n"] if lines else []
    shown += map(grids.to_markdown, tables)
    shown += ["![Edits of two models on each benchmark](examples.png)\n"] if study.examples else []
    with whole_file(folder / "study.md") as temporary:
        temporary.write_text("\n".join(["# The study: the paper's claims in the embedded world\n", *shown]), "utf-8")
    with whole_file(folder / "study.tex") as temporary:
        temporary.write_text("\n".join(map(grids.to_latex, tables)), encoding="utf-8")
    if len(tables) > 1:
        grids.draw(tables[1], folder / "table.png")
    if lines:
        crossing.draw(lines, crossed, folder / "map.png", here, resamples)
    if study.examples:
        examples.draw(study.examples, folder / "examples.png")
    summary = {
        "seeds": sorted({seed for _, seed in results}),
        "samples": study.samples,
        "rows": [_row_summary(study, name, row) for name, row in means.items()],
        "claims": judged,
        "map": crossing.summary(lines, crossed, resamples),
        "rank_correlation": ranks,
        "runs": [{"row": run.row, "seed": run.seed, "status": run.status} | _told(run.result) for run in study.runs],
    }
    write_json(folder / "summary.json", summary)
    _write_html(study, folder / "study.html", tables, crossed, len(lines))
    return summary


def _means(results: claims.Results, resamples: int) -> dict[str, list[Mean]]:
    """By row its means over each benchmark, and over their means, in the order of `BENCHMARKS`."""
    samples = [sample for result in results.values() for sample in result.samples]
    found = main_rows(samples, resamples=resamples) if samples else []
    names = [*BENCHMARKS, *(row.split for row in found if row.split not in BENCHMARKS)]
    by_row: dict[str, dict[str, Mean]] = {}
    for row in found:
        by_row.setdefault(row.model, {})[row.split] = row
    return {name: [row[split] for split in dict.fromkeys(names) if split in row] for name, row in by_row.items()}


def _about(study: Study) -> tuple[str, ...]:
    """Judge, samples, seeds and machines: under which conditions all scores came about."""
    results = study.results.values()
    judged = dict.fromkeys(replace(one.made_under, date="").judged for one in results)
    dates = sorted({one.date for one in results})
    machines = dict.fromkeys(one.machine for one in results)
    seeds = crossing.named(sorted({one.seed for one in results}))
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else UNKNOWN
    return (
        *(f"{one}." for one in judged),
        f"{study.samples} samples of each benchmark, {seeds}.",
        f"Made {when} on {'; '.join(machines) or UNKNOWN}.",
    )


def _claims_grid(judged: Sequence[Mapping[str, Any]], ranks: Mapping[str, Any] | None, about: Sequence[str]) -> Grid:
    rows = []
    for one in judged:
        missing = f"; not run: {len(one['not_run'])} of {len(one['contrasts'])} contrasts" if one["not_run"] else ""
        decided = f"{one['decided_by']}{missing}" if one["decided_by"] else "not run"
        rows.append(
            [
                f"{one['claim']} ({one['source']})",
                one["verdict"],
                grids.cell(one["effect"], one["interval"], "+"),
                shown_interval(one["t_interval"], "+") if one["t_interval"] else UNKNOWN,
                str(one["seeds"]),
                _ratio(one["compute"]),
                decided + (". " + one["where"].partition(". ")[2] if ". " in one["where"] else ""),
            ]
        )
    note = (
        "A claim holds if the interval of each of its contrasts lies above 0 and so does every seed; it does not hold "
        "if one lies below in the same way. Effect: the contrast that decides, in points of the score, with its 95% "
        "interval by the bootstrap over seeds and samples (over samples alone for one seed), Student's t over seeds "
        "beside it. Compute: of the contrast's two rows with all on the way to them, in its second one's. In tables "
        f"{judged[0]['where'].partition('. ')[0]}; the map has other noise. Not adjusted for the number of claims."
    )
    if ranks is not None and ranks["value"] is not None:
        interval = f" {shown_interval(ranks['interval'])}" if ranks["interval"] else ""
        note += f" Spearman's rank correlation of {ranks['rows']} averages with the published ones: "
        note += f"{ranks['value']:.2f}{interval}."
    columns = ["claim", "verdict", "effect", "t over seeds", "seeds", "compute", "decided by, and where"]
    return Grid("The paper's claims", columns, rows, note, conditions=about)


def _ratio(compute: Sequence[float] | None) -> str:
    return f"{compute[0] / compute[1]:.2f} : 1" if compute and compute[1] else UNKNOWN


def _tables(study: Study, means: Mapping[str, list[Mean]], about: Sequence[str], resamples: int) -> list[Grid]:
    found = []
    seeds = {seed for _, seed in study.results}
    heads = ["", "", *(f"{name} ({theirs})" for name, theirs in BENCHMARKS.items()), "AVG"]
    for number, title in TITLES.items():
        own = [name for name, row in study.rows.items() if row.table == number and name in means]
        if not own:
            continue
        beside = ["sft_s", "sft_s__rl_sc"] if number != 2 else []
        shown = [name for name in [*beside, *own] if name in means]
        lines = []
        for name in shown:
            row = study.rows[name]
            picked = any(one.made_under.picked_by_its_judge for key, one in study.results.items() if key[0] == name)
            cells = [grids.cell(one.mean, one.ci95) for one in means[name]]
            made = sorted(seed for key, seed in study.results if key == name)
            few = f", {crossing.named(made)}" if len(made) < len(seeds) else ""
            lines.append([f"{row.label} {PICKED}" if picked else row.label, f"here{few}", *cells])
            published = row_of(row.published or name)
            if published is not None:
                lines.append(["", "published", *(f"{value:.2f}" for value in published.cells)])
            if any(one.failed for one in means[name]):
                lines.append(["", "failed", *(str(one.failed) for one in means[name])])
        note = how_measured([one for name in shown for one in means[name]], resamples, 0)
        found.append(Grid(title, heads, lines, note, blocks=True, conditions=about))
    return found


def _map_grid(lines: Mapping[str, Mapping[str, crossing.Line]], resamples: int) -> Grid:
    rows = []
    for axis, members in lines.items():
        places = sorted({place for line in members.values() for place in line.places})
        for place in places:
            cells = []
            for name in crossing.LINES:
                line = members.get(name)
                found = line.estimates(resamples)[line.places.index(place)] if line and place in line.places else None
                cells.append(grids.cell(found.mean, found.nested or found.ci95) if found else UNKNOWN)
            rows.append(
                [
                    f"{axis}, {crossing.named(crossing.line_seeds(members))}" if place == places[0] else "",
                    f"{place:g}",
                    *cells,
                ]
            )
    note = (
        "Score on the held-out complex edits of the quickstart. All three begin at SFT (S); RL reads no targets, so "
        "over their noise it is one run per seed. An axis has the seeds that all of its places have."
    )
    return Grid("The map", ["axis", "at", *crossing.LINES.values()], rows, note, blocks=True)


def _compute_grid(study: Study) -> Grid:
    """What each row took, beside SFT (S)."""
    found: dict[str, list[Result]] = {}
    for (row, _), result in study.results.items():
        found.setdefault(row, []).append(result)
    unit = next((one.passes[1] for one in found.get("sft_s", ())), None)
    rows = []
    for name, results in found.items():
        own, whole = results[0].passes
        seconds = sum(one.core_seconds for one in results) / len(results)
        relative = f"{whole / unit:.2f}" if unit else UNKNOWN
        rows.append([study.rows[name].label, f"{own / 1e6:.1f}", f"{whole / 1e6:.1f}", relative, f"{seconds:.0f}"])
    note = (
        "Millions of tokens times passes (a forward pass counts 1, a backward one 2), from each run's settings and its "
        "data's lengths: of the last training, and of all on the way to it; core-seconds of its last training and its "
        "scores, mean over seeds. RL samples all of its completions and scores them by policy and reference. The best "
        "of 5 has no training of its own, and samples five edits for one."
    )
    return Grid("Compute", ["row", "own", "in all", "in units of SFT (S)", "core-seconds"], rows, note)


def _runs_grid(study: Study) -> Grid:
    rows = []
    left: dict[str, list[int]] = {}
    for run in study.runs:
        told, result = run.status, run.result
        if result is None:
            left.setdefault(run.row, []).append(run.seed)
            continue
        if result.failures:
            told += (
                f"; failed before: {' | '.join(result.failures)}"
                if run.status == "made"
                else f": {result.failures[-1]}"
            )
        rows.append([f"{run.row}, seed {run.seed}", told, result.date, result.machine, f"{result.seconds:.0f}"])
    rows += [[f"{row}, {crossing.named(seeds)}", "not reached", *[UNKNOWN] * 3] for row, seeds in left.items()]
    return Grid("Every run", ["run", "", "date", "machine", "seconds"], rows)


def _told(result: Result | None) -> dict[str, Any]:
    if result is None:
        return {}
    names = ("digest", "date", "machine", "seconds", "core_seconds", "failures")
    return {name: getattr(result, name) for name in names}


def _row_summary(study: Study, name: str, means: Sequence[Mean]) -> dict[str, Any]:
    published = row_of(study.rows[name].published or name)
    return {
        "row": name,
        "label": study.rows[name].label,
        "table": study.rows[name].table,
        "scores": {
            one.split: {key: asdict(one)[key] for key in ("mean", "ci95", "nested", "n", "failed", "runs")}
            for one in means
        },
        "published": list(published.cells) if published else None,
        "conditions": asdict(
            merged([result.made_under for key, result in study.results.items() if key[0] == name], JOINED)
        ),
    }


def _write_html(
    study: Study, path: Path, tables: Sequence[Grid], crossed: Sequence[crossing.Crossing], panels: int
) -> None:
    results = study.results
    seeds = sorted({seed for _, seed in results})
    seconds = sum(one.core_seconds for one in results.values())
    facts = {
        "Seeds": ", ".join(map(str, seeds)) or UNKNOWN,
        "Samples of each benchmark": str(study.samples),
        "Runs": f"{len(results)} of {len(study.runs)}",
        "Core-hours": f"{seconds / 3600:.1f}",
    }
    curves = []
    for name, row in study.rows.items():
        known = [
            (seed, result.reward) for (own, seed), result in results.items() if own == name and len(result.reward) > 1
        ]
        if known and row.table and isinstance(row.how, Rl):
            seed, reward = known[0]
            each = study.sizes.steps("rl") * row.how.times / len(reward)
            steps = [(place + 0.5) * each for place in range(len(reward))]
            curves.append(
                Panel(row.label, f"score, seed {seed}", line_chart(row.label, steps, reward, True, (0.0, 10.0), True))
            )
    texts = [_told_crossing(one) for one in crossed]
    page = environment(Path(__file__).parent).get_template("study.html.jinja")
    with whole_file(path) as temporary:
        temporary.write_text(
            page.render(
                kicker=f"Made on {'; '.join(dict.fromkeys(one.machine for one in results.values())) or UNKNOWN}",
                facts=facts,
                map=panels,
                examples=(path.parent / "examples.png").is_file(),
                crossings=texts,
                grids=tables,
                marks=MARKS,
                curves=curves,
            ),
            encoding="utf-8",
        )


def _told_crossing(one: crossing.Crossing) -> str:
    interval = f" [{', '.join(map(crossing.shown, one.interval))}]" if one.interval else ""
    return f"{one.axis.capitalize()}: {one.text}{interval}."
