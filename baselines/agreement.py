"""How far a judge can be trusted: against another judge, against itself, against people.

    python -m baselines.agreement --scores runs/x/gpt.parquet --other runs/x/qwen.parquet --output runs/x/judges
    python -m baselines.agreement --scores runs/x/scores.parquet --ratings ratings.csv --output runs/x/people

Two score files of the same predictions by two judges give their agreement; two by one judge with another seed
(`baselines.score --judge-seed 1 --judge-temperature 0.7 --output ...`) its test-retest. `--ratings` compares with
people: a CSV, JSON or Parquet file with a row per rating and the columns `id`, `model`, `rating`, and `benchmark` where
ids occur in several; several ratings of one edit are averaged. Other column names are given by `--id-key` and so on.
Their scale is their own: ratings are correlated with scores, never subtracted.
The paper's check against the ratings of AURORA-Bench is this one per source, with `--part sc` for its second line.

Scores of several models are compared three times: all pairs alike, within each model, and by the models' means. The
first is high already where both sides know which model is better; whether a judge tells good edits of one model from
bad ones is the second. Intervals draw all models' edits of a source image together, or of a sample where the files
do not know its image.

Only samples that both sides have a score for are compared. `--subset N` fixes the same N of them for every comparison,
by a hash of their ids. Writes agreement.json and agreement.md: over all, per benchmark, per source, each with n, the
correlations, the mean difference with its interval, and the share of equal scores.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from baselines.results.records import VIESCORE, ScoredSample, read_records, read_settings
from baselines.tables.correlations import CORRELATION_RESAMPLES, Correlation, Level, correlations
from baselines.tables.grid import UNKNOWN, Grid, cell, code, to_markdown
from baselines.tables.statistics import Interval, add_resampling_flags, cluster_of, mean_interval
from baselines.tables.summary import by_benchmark, by_source, of_metric
from emu3.errors import UserError, run_main
from emu3.files import read_json, reading_parquet, whole_file, write_json
from emu3.flags import CommandParser
from emu3.settings import COUNT

EQUAL = 0.5
"""Two scores from 0 to 10 that differ by no more than this count as equal."""


class EditKey(NamedTuple):
    """One edit of one sample."""

    benchmark: str
    id: str
    model: str


@dataclass(frozen=True)
class RatingColumns:
    """Names of the columns. That of the benchmark may be absent from the file."""

    id: str = "id"
    model: str = "model"
    rating: str = "rating"
    benchmark: str = "benchmark"


@dataclass(frozen=True)
class Agreement:
    """Two sides on one group of samples. n: pairs, or models where their means are compared. difference: mean of first
    minus second; equal: share of scores within `EQUAL` of each other. Both are None against people, whose scale is
    their own, and in the comparisons within and between models."""

    group: str
    n: int
    difference: float | None
    difference_ci95: Interval | None
    equal: float | None
    correlations: list[Correlation]


def run(
    scores: Path,
    output: Path,
    *,
    other: Path | None = None,
    ratings: Path | None = None,
    columns: RatingColumns | None = None,
    part: str | None = None,
    subset: int | None = None,
    resamples: int = CORRELATION_RESAMPLES,
    seed: int = 0,
) -> list[Agreement]:
    """Compare VIEScores with another file's or with people's; returns what it writes, the whole first.

    `part` compares a part of the score, such as sc, instead. Raises `UserError` unless exactly one of `other` and
    `ratings` is given, and if no sample is on both sides.
    """
    first = _by_sample(scores)
    values = {key: _value(score, part) for key, score in first.items()}
    second: dict[EditKey, float | None] = {}
    if other is not None and ratings is None:
        second |= {key: _value(score, part) for key, score in _by_sample(other).items()}
    elif ratings is not None and other is None:
        second |= read_ratings(ratings, columns or RatingColumns(), list(first))
    else:
        raise UserError("agreement is with another score file or with ratings: give one of --other and --ratings")
    keys = [key for key in first if values[key] is not None and second.get(key) is not None]
    if not keys:
        raise UserError(f"no sample of {scores} has a score on both sides; samples match by benchmark, id and model")
    if subset is not None:
        keys = sorted(keys, key=_place)[:subset]
    pairs = {key: (values[key], second[key]) for key in keys}
    groups = _groups([first[key] for key in keys])
    found = [
        agreement
        for name, members in groups.items()
        for agreement in _agreements(
            name, [(score, *pairs[_key(score)]) for score in members], other is not None, resamples, seed
        )
    ]
    names = [_name(scores), _name(other) if other is not None else f"people, {ratings}"]
    sides = {"first": names[0], "second": names[1], "part": part or "score", "resamples": resamples, "seed": seed}
    write_json(output / "agreement.json", sides | {"groups": [asdict(group) for group in found]})
    with whole_file(output / "agreement.md") as temporary:
        temporary.write_text(to_markdown(_grid(found, names, part)), encoding="utf-8")
    return found


def _key(score: ScoredSample) -> EditKey:
    return EditKey(score.benchmark, score.id, score.model)


def _place(key: EditKey) -> tuple[str, str]:
    """Place in the fixed order of which `--subset` takes the first; the models' edits of a sample stay together."""
    return hashlib.sha256(f"{key.benchmark}\0{key.id}".encode()).hexdigest(), key.model


def _by_sample(path: Path) -> dict[EditKey, ScoredSample]:
    scores = of_metric(read_records(path, ScoredSample), VIESCORE)
    found = {_key(score): score for score in scores}
    if len(found) != len(scores):
        raise UserError(f"{path} has two scores for one sample")
    return found


def _value(score: ScoredSample, part: str | None) -> float | None:
    if score.value is None or part is None:
        return score.value
    if part not in score.parts:
        raise UserError(f"scores have no part {part!r}; there are {', '.join(score.parts)}")
    return score.parts[part]


def _name(path: Path) -> str:
    settings = read_settings(path)
    return f"{settings.get('judge', 'unknown judge')}, seed {settings.get('judge_seed', 0)}"


def _groups(scores: Sequence[ScoredSample]) -> dict[str, list[ScoredSample]]:
    """All samples, then each benchmark where there are several, then each source."""
    groups = {"all": list(scores)}
    divisions: list[Callable[[ScoredSample], str]] = [by_benchmark, by_source]
    for division in divisions:
        names = [name for name in dict.fromkeys(map(division, scores)) if name]
        if len(names) > 1:
            groups |= {name: [score for score in scores if division(score) == name] for name in names}
    return groups


def read_ratings(path: Path, columns: RatingColumns, keys: Sequence[EditKey]) -> dict[EditKey, float]:
    """Mean ratings of those edits of `keys` that the file rates. Without a column for the benchmark an id may occur in
    one benchmark only. Raises `UserError` for a missing column and for a rating that is no number."""
    rows = _ratings(path)
    expected = (columns.id, columns.model, columns.rating)
    if not rows or (missing := [name for name in expected if name not in rows[0]]):
        raise UserError(f"{path} has no ratings" if not rows else f"{path} has no column {missing[0]!r}")
    with_benchmark = columns.benchmark in rows[0]
    found: dict[tuple[str, ...], list[float]] = {}
    for number, row in enumerate(rows, start=1):
        sample = (str(row[columns.id]), str(row[columns.model]))
        key = (str(row[columns.benchmark]), *sample) if with_benchmark else sample
        try:
            rating = float(row[columns.rating])
        except (TypeError, ValueError):
            rating = math.nan
        if not math.isfinite(rating):
            raise UserError(f"{path}, rating {number}: {row[columns.rating]!r} is no number")
        found.setdefault(key, []).append(rating)
    if not with_benchmark and len({(key.id, key.model) for key in keys}) < len(keys):
        raise UserError(f"{path} has no column {columns.benchmark!r}, and ids occur in several benchmarks")
    names = {key: tuple(key) if with_benchmark else (key.id, key.model) for key in keys}
    return {key: sum(found[name]) / len(found[name]) for key, name in names.items() if name in found}


def _ratings(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} is not a list of ratings")
        return rows
    if path.suffix == ".parquet":
        with reading_parquet(path):
            return pq.read_table(path).to_pylist()
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _agreements(
    name: str, pairs: Sequence[tuple[ScoredSample, Any, Any]], one_scale: bool, resamples: int, seed: int
) -> list[Agreement]:
    """The group's agreement over all pairs and, where it has several models, within and between them."""
    one, other = np.array([pair[1:] for pair in pairs], dtype=np.float64).T
    models = [score.model for score, *_ in pairs]
    images = [cluster_of(score) for score, *_ in pairs]

    def coefficients(level: Level) -> list[Correlation]:
        return correlations(one, other, models=models, level=level, clusters=images, resamples=resamples, seed=seed)

    interval = mean_interval(one - other, clusters=images, resamples=resamples, seed=seed)
    whole = Agreement(
        group=name,
        n=len(pairs),
        difference=float((one - other).mean()) if one_scale else None,
        difference_ci95=interval if one_scale else None,
        equal=float((np.abs(one - other) <= EQUAL).mean()) if one_scale else None,
        correlations=coefficients("pooled"),
    )
    if len(set(models)) < 2:
        return [whole]
    within = Agreement(f"{name}, within models", len(pairs), None, None, None, coefficients("within"))
    between = Agreement(f"{name}, means of models", len(set(models)), None, None, None, coefficients("system"))
    return [whole, within, between]


def _grid(found: Sequence[Agreement], names: Sequence[str], part: str | None) -> Grid:
    lines = [
        [
            group.group,
            str(group.n),
            *(cell(one.value, one.ci95) for one in group.correlations),
            cell(group.difference, group.difference_ci95, "+"),
            UNKNOWN if group.equal is None else f"{group.equal:.0%}",
        ]
        for group in found
    ]
    heads = ["samples", "n", *(one.name.capitalize() for one in found[0].correlations)]
    sides = f"{code(names[0])} against {code(names[1])}"
    note = f"{sides}, with 95% bootstrap intervals; equal: within {EQUAL:g} of each other."
    return Grid(f"Agreement, {part or 'score'}", [*heads, "mean difference", "equal"], lines, note)


def main() -> None:
    parser = CommandParser(description="Agreement of a judge with another or with people.")
    parser.add_argument("--scores", type=Path, required=True, help="a scores.parquet")
    parser.add_argument("--other", type=Path, help="scores of the same predictions by another judge, or by this again")
    parser.add_argument("--ratings", type=Path, help="people's ratings: CSV, JSON or Parquet")
    parser.add_argument("--id-key", default="id")
    parser.add_argument("--model-key", default="model")
    parser.add_argument("--rating-key", default="rating")
    parser.add_argument("--benchmark-key", default="benchmark", help="used where the file has it")
    parser.add_argument("--output", type=Path, required=True, help="folder of agreement.json and agreement.md")
    parser.add_argument("--part", help="compare a part of the score: sc, pq, edit_success, ...")
    parser.add_argument("--subset", type=COUNT, help="compare a fixed subset of so many scores")
    add_resampling_flags(parser, CORRELATION_RESAMPLES)
    options = vars(parser.parse_args())
    columns = RatingColumns(**{name: options.pop(f"{name}_key") for name in ("id", "model", "rating", "benchmark")})
    run(**options, columns=columns)
    print((options["output"] / "agreement.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_main(main)
