"""The paper's claims as tests on the study's own scores.

A claim is a list of contrasts, one row's score less another's, sample by sample. A contrast holds if its interval lies
above 0 and every seed's own mean does; a claim holds if all of its contrasts do, and does not hold if one of them is
below 0 in the same way. Its effect is that of the contrast which decides: the smallest one. The interval is that of
the hierarchical bootstrap over seeds and samples (`nested_interval`), with Student's t over the seeds beside it; of
one seed it covers samples alone. None of them is adjusted for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.tables.paper import row_of
from baselines.tables.statistics import Estimate, Interval, Sampled, estimate
from shapes.study.cells import BENCHMARKS, Result
from shapes.study.rows import ROWS

HOLDS, DOES_NOT, UNDECIDED = "holds", "does not hold", "undecided"
Results = Mapping[tuple[str, int], Result]
"""Finished cells by row and seed."""


@dataclass(frozen=True)
class Contrast:
    """`more` less `less`, over the mean of `benchmarks`."""

    more: str
    less: str
    benchmarks: tuple[str, ...] = tuple(BENCHMARKS)

    @property
    def name(self) -> str:
        on = "" if len(self.benchmarks) == len(BENCHMARKS) else f" on {', '.join(self.benchmarks)}"
        return f"{ROWS[self.more].label} less {ROWS[self.less].label}{on}"


@dataclass(frozen=True)
class Claim:
    """What the paper says, where it says it, and what would show it here. on_map: the lines of the map, over the noise
    of targets, that bear on it."""

    text: str
    source: str
    contrasts: tuple[Contrast, ...]
    on_map: tuple[str, str] | None = None


def _pairs(*pairs: tuple[str, str]) -> tuple[Contrast, ...]:
    return tuple(Contrast(more, less) for more, less in pairs)


BEST, WEAK = "sft_s__rl_sc", tuple(name for name, row in ROWS.items() if row.table == 6)
OTHER_ORDERS = (
    "sft_s__rl_s",
    "sft_s__rl_c",
    "sft_sc__rl_sc",
    "sft_sc__rl_c",
    "sft_sc2stage__rl_sc",
    "sft_sc2stage__rl_c",
)

CLAIMS = (
    Claim(
        "RL (S+C) is above SFT (S) on all six benchmarks",
        "Table 2",
        tuple(Contrast(BEST, "sft_s", (name,)) for name in BENCHMARKS),
        ("rl", "sft"),
    ),
    Claim("SFT (S+C) is below SFT (S)", "Table 2", _pairs(("sft_s", "sft_sc")), ("start", "sft")),
    Claim(
        "SFT on S, then RL on S+C is the best order",
        "Table 2",
        tuple(Contrast(BEST, other) for other in OTHER_ORDERS),
    ),
    Claim("two-stage SFT is below SFT (S)", "Table 2", _pairs(("sft_s", "sft_sc2stage")), ("start", "sft")),
    Claim(
        "RL gets further from SFT (S) than from SFT (S+C)",
        "Table 2",
        _pairs((BEST, "sft_sc__rl_sc"), ("sft_s__rl_c", "sft_sc__rl_c")),
    ),
    Claim(
        "a chain of thought does not help: SFT and RL are lower with one",
        "Table 3",
        _pairs(("sft_s", "sft_think_s"), (BEST, "sft_think_s__rl_sc")),
    ),
    Claim(
        "a weak judge hurts RL, to below SFT (S)",
        "Table 6",
        tuple(Contrast(strong, weak) for weak in WEAK for strong in (BEST, "sft_s")),
    ),
    Claim("the best of 5 of SFT (S) stays below one sample of RL (S+C)", "Table 11", _pairs((BEST, "sft_s_best5"))),
    Claim("twice the steps of RL help", "Table 2", _pairs(("earl", BEST))),
)


def contrast(results: Results, found: Contrast, resamples: int) -> Estimate:
    """Over the seeds that have both rows, on the samples that both have a score for."""
    seeds = sorted(seed for row, seed in results if row == found.more and (found.less, seed) in results)
    runs = []
    for seed in seeds:
        pair = [results[row, seed].scores for row in (found.more, found.less)]
        runs.append([_differences(*(scores.get(name, ()) for scores in pair)) for name in found.benchmarks])
    return estimate(runs, resamples=resamples)


def _differences(more: Sequence[float | None], less: Sequence[float | None]) -> Sampled:
    pairs = [(place, a - b) for place, (a, b) in enumerate(zip(more, less, strict=False)) if None not in (a, b)]  # type: ignore[operator]
    return Sampled(np.array([value for _, value in pairs]), [place for place, _ in pairs])


def interval_of(found: Estimate) -> Interval | None:
    """The interval that a verdict rests on."""
    return found.nested or found.ci95


def verdict_of(found: Estimate) -> str:
    """Of one contrast."""
    interval = interval_of(found)
    if interval is None:
        return UNDECIDED
    if interval[0] > 0 and all(mean > 0 for mean in found.runs):
        return HOLDS
    return DOES_NOT if interval[1] < 0 and all(mean < 0 for mean in found.runs) else UNDECIDED


def judged(results: Results, where: Callable[[Claim], str], resamples: int) -> list[dict[str, Any]]:
    """The claims in their order with verdict, effect, interval, t_interval, seeds, contrasts, where. compute: of both
    rows of a contrast, in tokens times passes of all their trainings. What was not run is undecided, and says so."""
    found = []
    for claim in CLAIMS:
        parts = [(one, contrast(results, one, resamples)) for one in claim.contrasts]
        known = [(one, about) for one, about in parts if about.mean is not None]
        verdicts = [verdict_of(about) for _, about in known]
        verdict = DOES_NOT if DOES_NOT in verdicts else UNDECIDED
        if len(known) == len(parts) and set(verdicts) == {HOLDS}:
            verdict = HOLDS
        weakest, about = min(known, key=lambda part: part[1].mean or 0.0) if known else (None, Estimate())
        found.append(
            {
                "claim": claim.text,
                "source": claim.source,
                "verdict": verdict,
                "effect": about.mean,
                "interval": interval_of(about),
                "t_interval": about.ci95 if len(about.runs) > 1 else None,
                "seeds": len(about.runs),
                "decided_by": weakest.name if weakest else None,
                "compute": _compute(results, weakest) if weakest else None,
                "where": where(claim),
                "not_run": [one.name for one, about in parts if about.mean is None],
                "contrasts": [
                    {
                        "name": one.name,
                        "effect": about.mean,
                        "interval": interval_of(about),
                        "t_interval": about.ci95 if len(about.runs) > 1 else None,
                        "by_seed": list(about.runs),
                        "compute": _compute(results, one),
                        "verdict": verdict_of(about) if about.mean is not None else "not run",
                    }
                    for one, about in parts
                ],
            }
        )
    return found


def _compute(results: Results, one: Contrast) -> list[float] | None:
    both = [[result.passes[1] for (row, _), result in results.items() if row == name] for name in (one.more, one.less)]
    return [both[0][0], both[1][0]] if all(both) else None


def rank_correlation(averages: Mapping[str, float]) -> dict[str, Any] | None:
    """Spearman's coefficient between rows' averages here and in the paper; None for fewer than three rows. Its interval
    is over rows."""
    from baselines.tables.correlations import correlations

    pairs = []
    for name, mean in averages.items():
        published = row_of(ROWS[name].published or name)
        if published is not None:
            pairs.append((mean, published.cells[-1]))
    if len(pairs) < 3:
        return None
    ours, theirs = np.array(pairs).T
    [found] = correlations(ours, theirs, names=("spearman",))
    return {"rows": len(pairs), "value": found.value, "interval": found.ci95}
