"""The first sentences of a report, computed: which of two models is better, and what may be said about it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from baselines.tables.averages import AVERAGE
from baselines.tables.cells import cell
from baselines.tables.summary import SPLIT_ORDER, Row


@dataclass(frozen=True)
class Finding:
    """What the scores of one split say about two models: a sentence, and the figures that it rests on."""

    claim: str
    evidence: str


def findings(rows: Sequence[Row], candidate: str, reference: str, bounds: Collection[str] = ()) -> list[Finding]:
    """A finding per split that both models have, complex before simple.

    `rows` come from `summarise` with the same `reference`; `bounds` are models that compete with nobody (no-edit and
    ground truth). A third model that is ahead of both is named.
    """
    found = {(row.model, row.split): row for row in rows}
    return [
        _finding(
            found[candidate, split],
            found[reference, split],
            [row for row in rows if row.split == split and row.model not in bounds],
        )
        for split in reversed(list(dict.fromkeys(row.split for row in rows)))
        if (candidate, split) in found and (reference, split) in found
    ]


def intervals_disjoint(one: Row, other: Row) -> bool:
    """Whether the two 95% intervals have no number in common; False where one is unknown."""
    if one.ci95 is None or other.ci95 is None:
        return False
    return one.ci95[0] > other.ci95[1] or other.ci95[0] > one.ci95[1]


def _finding(candidate: Row, reference: Row, competitors: list[Row]) -> Finding:
    where, pair = _where(candidate.split), candidate.difference
    if candidate.mean is None or reference.mean is None or pair is None or pair.ci95 is None:
        return Finding(f"{where} too few samples were judged to compare {candidate.model} with {reference.model}.", "")
    low, high = pair.ci95
    figures = f"{candidate.mean:.2f} against {reference.mean:.2f}"
    if low <= 0 <= high:
        claim = f"{where} {candidate.model} and {reference.model} cannot be told apart: {figures}."
    else:
        claim = f"{where} {candidate.model} {'beats' if low > 0 else 'loses to'} {reference.model}: {figures}."
    overlap = "do not overlap" if intervals_disjoint(candidate, reference) else "overlap"
    evidence = (
        f"The difference on the same {pair.n} samples is {cell(pair.mean, pair.ci95, '+')}; "
        f"the 95% intervals of the two means {overlap}."
    )
    best = max(competitors, key=lambda row: -1.0 if row.mean is None else row.mean)
    if best.model not in (candidate.model, reference.model):
        evidence += f" The highest mean is that of {best.model}: {cell(best.mean, best.ci95)}."
    return Finding(claim, evidence)


def _where(split: str) -> str:
    if split.startswith(AVERAGE):
        return "On average"
    return f"On {split} edits" if split in SPLIT_ORDER else f"On {split}"
