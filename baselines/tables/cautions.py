"""What a reader should know before believing a table, a sentence each: above all where its means may mislead.

Failures need not be missing at random, so a table says loudly where many samples failed, with the bounds of the mean if
all of them had been the worst or the best, and where failures go with a task. An interval over few or nearly constant
values is too narrow. A mean over tasks may be even though the tasks are not.
"""

from __future__ import annotations

from collections.abc import Sequence

from baselines.results.records import WHOLE_SET, ScoredSample
from baselines.tables.conditions import ByModel
from baselines.tables.grid import brackets, code, fixed
from baselines.tables.statistics import failure_bounds
from baselines.tables.summary import AVERAGE, Row, models_of, task_group
from rl.reward.counters import failures_with_a_task

MANY_FAILED, FEW, SENTENCES = 0.02, 100, 4
"""Share of failed samples above which, and number of source images below which, a table warns; and how often at most
of one kind."""
TASKS_SHOWN = 3
PICKED = "†"
"""Marks a model whose edits were picked by the judge that scores them."""


def cautions(scores: Sequence[ScoredSample], rows: Sequence[Row], conditions: ByModel) -> list[str]:
    """Sentences about the main table of one metric. scores: of that metric."""
    return [
        *_many_failed(rows),
        *_failed_by_task(scores),
        *_few(rows),
        *_unknown_images(scores),
        *_picked(rows, conditions),
        *_development(rows, conditions),
        *_unpaired(rows),
    ]


def disagreements(tasks: Sequence[Row]) -> list[str]:
    """Where a model is better than the reference in some tasks and worse in others, each task by itself."""
    found = []
    for model in dict.fromkeys(row.model for row in tasks):
        own = [(row.split, row.difference) for row in tasks if row.model == model and row.difference is not None]
        sure = [(name, one) for name, one in own if one.ci95 is not None and not one.ci95[0] <= 0 <= one.ci95[1]]
        better = sorted((pair for pair in sure if pair[1].mean > 0), key=lambda pair: -pair[1].mean)
        worse = sorted((pair for pair in sure if pair[1].mean < 0), key=lambda pair: pair[1].mean)
        if better and worse:
            shown = ", ".join(
                f"{name} {fixed(one.mean, 2, '+')} {brackets(one.ci95, '+')}"
                for name, one in (*better[:TASKS_SHOWN], *worse[:TASKS_SHOWN])
                if one.ci95 is not None
            )
            found.append(f"TASKS DISAGREE about {code(model)} against {code(own[0][1].to)}: {shown}.")
    return found


def shown_name(model: str, conditions: ByModel) -> str:
    """The model's name in a table, marked where its edits were picked by the judge that scores them."""
    picked = any(found.picked_by_its_judge for (name, _), found in conditions.items() if name == model)
    return f"{code(model)} {PICKED}" if picked else code(model)


def _many_failed(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        share = row.failed / max(1, row.n + row.failed)
        # An average weighs its benchmarks alike: their own rows say it.
        if share > MANY_FAILED and row.mean is not None and not row.split.startswith(AVERAGE):
            low, high = failure_bounds(row.mean, row.n, row.failed)
            found.append(
                f"MANY FAILED: {code(row.model)}, {row.split}: {share:.0%} have no score; counted as 0 they make "
                f"its mean {low:.2f}, counted as 10 {high:.2f}."
            )
    if len(found) > SENTENCES:
        return [*found[:SENTENCES], f"The same of {len(found) - SENTENCES} more: see the column `failed`."]
    return found


def _failed_by_task(scores: Sequence[ScoredSample]) -> list[str]:
    group = task_group(scores)
    found = []
    for model in models_of(scores):
        counts: dict[str, tuple[int, int]] = {}
        for score in scores:
            if score.model == model:
                failed, total = counts.get(group(score), (0, 0))
                counts[group(score)] = failed + (score.value is None), total + 1
        if (what := failures_with_a_task(counts)) is not None:
            found.append(f"FAILURES GO WITH THE TASK: {code(model)}: {what}; its mean leaves them out.")
    return found[:SENTENCES]


def _few(rows: Sequence[Row]) -> list[str]:
    few = sorted({row.images for row in rows if row.ci95 is not None and row.images < FEW})
    if not few:
        return []
    return [
        f"n below {FEW} (from {few[0]}), counted in source images: intervals of scores that are nearly alike come out "
        "too narrow."
    ]


def _unknown_images(scores: Sequence[ScoredSample]) -> list[str]:
    unknown = dict.fromkeys(code(score.model) for score in scores if not score.source_id and score.id != WHOLE_SET)
    if not unknown:
        return []
    return [
        f"Source images unknown for {', '.join(unknown)}: each sample is drawn by itself, as if no two were edits of "
        "one image."
    ]


def _picked(rows: Sequence[Row], conditions: ByModel) -> list[str]:
    if not any(shown_name(row.model, conditions).endswith(PICKED) for row in rows):
        return []
    return [f"{PICKED} best of n by the judge that scores it: the score is what the edit was chosen for."]


def _development(rows: Sequence[Row], conditions: ByModel) -> list[str]:
    models = {row.model for row in rows}
    chosen = dict.fromkeys(
        code(name) for (name, _), found in conditions.items() if found.part == "dev" and name in models
    )
    if not chosen:
        return []
    return [f"DEVELOPMENT PART: {', '.join(chosen)}: for choosing settings; a result is what the held-out part gives."]


def _unpaired(rows: Sequence[Row]) -> list[str]:
    """Models of several runs that have no difference, since the reference's runs are others."""
    reference = next((row.difference.to for row in rows if row.difference is not None), None)
    lost = dict.fromkeys(
        code(row.model) for row in rows if row.runs and row.difference is None and row.model != reference
    )
    if reference is None or not lost:
        return []
    return [f"No difference of {', '.join(lost)} to {code(reference)}: their runs have not the same seeds."]
