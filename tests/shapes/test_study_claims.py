"""Claims and crossings on scores whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from shapes.study import claims
from shapes.study.cells import BENCHMARKS, Result
from shapes.study.claims import DOES_NOT, HOLDS, UNDECIDED
from shapes.study.crossing import COMPLEX, Line, _apart, crossing, crossings, draw, levels, lines_of
from shapes.study.rows import SIZES, map_rows

N = 60
RESAMPLES = 300


def result(
    row: str, seed: int, level: float, *, spread: float = 1.0, benchmarks: tuple[str, ...] = tuple(BENCHMARKS)
) -> Result:
    random = np.random.default_rng([seed, *row.encode()])
    scores = {name: random.normal(level, spread, N).tolist() for name in benchmarks}
    return Result(row, seed, "d", passes=(1.0, 2.0 if "rl" in row else 1.0), scores=scores)


def results(levels: Mapping[str, tuple[float, ...]]) -> dict[tuple[str, int], Result]:
    """Rows with a level for each seed."""
    return {(row, seed): result(row, seed, level) for row, of in levels.items() for seed, level in enumerate(of)}


def verdicts(levels: Mapping[str, tuple[float, ...]]) -> dict[str, str]:
    found = claims.judged(results(levels), lambda _: "", RESAMPLES)
    return {one["claim"]: one["verdict"] for one in found}


def test_a_claim_needs_its_interval_and_every_seed() -> None:
    """One seed that says the opposite leaves it open, however far above 0 the others are."""
    claim = "SFT (S+C) is below SFT (S)"
    assert verdicts({"sft_s": (5, 5, 5), "sft_sc": (3, 3, 3)})[claim] == HOLDS
    assert verdicts({"sft_s": (5, 5, 5), "sft_sc": (7, 7, 7)})[claim] == DOES_NOT
    assert verdicts({"sft_s": (5, 5, 5, 5), "sft_sc": (1, 1, 1, 5.4)})[claim] == UNDECIDED
    assert verdicts({"sft_s": (5, 5, 5), "sft_sc": (5, 5, 5)})[claim] == UNDECIDED
    assert verdicts({"sft_s": (5, 5, 5)})[claim] == UNDECIDED


def test_all_of_a_claims_contrasts_have_to_hold() -> None:
    """The order of training is the best one only if it beats each of the others; a benchmark counts by itself."""
    best = "SFT on S, then RL on S+C is the best order"
    levels = dict.fromkeys(claims.OTHER_ORDERS, (4.0, 4.0)) | {claims.BEST: (5.0, 5.0)}
    assert verdicts(levels)[best] == HOLDS
    assert verdicts(levels | {"sft_sc__rl_c": (6.0, 6.0)})[best] == DOES_NOT
    del levels["sft_sc__rl_c"]
    assert verdicts(levels)[best] == UNDECIDED, "what was not run shows nothing"
    six = results({claims.BEST: (6.0,), "sft_s": (4.0,)})
    six["sft_s", 0] = Result(**{**vars(six["sft_s", 0]), "scores": {**six["sft_s", 0].scores, "counting": [9.0] * N}})
    [found] = [one for one in claims.judged(six, lambda _: "", RESAMPLES) if "all six" in one["claim"]]
    assert found["verdict"] == DOES_NOT and "on counting" in found["decided_by"] and found["effect"] < -2
    assert found["compute"] == [2.0, 1.0]


def test_failed_samples_pair_with_nothing() -> None:
    """None is no zero: the pair is left out on both sides."""
    one, other = result("sft_s", 0, 5.0, spread=0.0), result("sft_sc", 0, 3.0, spread=0.0)
    scores = {name: [None, 100.0, *values[2:]] for name, values in one.scores.items()}
    scores_of_other = {name: [0.0, None, *values[2:]] for name, values in other.scores.items()}
    found = claims.contrast(
        {
            ("sft_s", 0): Result("sft_s", 0, "d", scores=scores),
            ("sft_sc", 0): Result("sft_sc", 0, "d", scores=scores_of_other),
        },
        claims.Contrast("sft_s", "sft_sc"),
        RESAMPLES,
    )
    assert found.mean == pytest.approx(2.0)


def test_rank_correlation_is_with_the_published_averages() -> None:
    order = {"sft_sc": 1.0, "sft_s": 2.0, "sft_s__rl_sc": 3.0, "earl": 4.0}
    found = claims.rank_correlation(order)
    assert found is not None and found["rows"] == 4 and found["value"] == pytest.approx(1.0)
    turned = claims.rank_correlation({name: -value for name, value in order.items()})
    assert turned is not None and turned["value"] == pytest.approx(-1.0)
    assert claims.rank_correlation({"sft_s": 1.0}) is None


def line(name: str, means: Mapping[float, float], seeds: int = 3) -> Line:
    random = np.random.default_rng(len(name))
    runs = tuple({seed: random.normal(mean, 0.5, N).tolist() for seed in range(seeds)} for mean in means.values())
    return Line(name, tuple(means), runs)


def test_the_crossing_is_interpolated_with_its_interval() -> None:
    """Differences of -2 at 0 and 1 at 1.5 cross at 1."""
    rl, sft = line("rl", {0.0: 4.0, 1.5: 4.0, 2.0: 4.0}), line("sft", {0.0: 6.0, 1.5: 3.0, 2.0: 2.0})
    found = crossing("target noise", rl, sft, RESAMPLES)
    assert found.place == pytest.approx(1.0, abs=0.1)
    assert found.interval is not None and found.interval[0] < found.place < found.interval[1] < 1.3
    assert found.text == f"RL (S+C) is above more SFT (S+C) beyond {found.place:.2g} changes"
    assert levels({"rl": rl, "sft": sft}, "rl", "sft", RESAMPLES).endswith("above at 1.5, 2; below at 0")


def test_lines_that_do_not_cross_say_who_is_above() -> None:
    found = crossing("judge noise", line("rl", {0.0: 5.0, 4.0: 4.5}), line("start", {0.0: 2.0, 4.0: 2.0}), RESAMPLES)
    assert (found.place, found.interval) == (None, None)
    assert found.text == "RL (S+C) is above their start, SFT (S) from 0 to 4 points of noise"


def test_the_axes_meet_in_the_quickstarts_point(tmp_path: Path) -> None:
    """RL over the noise of targets is one run, and that run is the other axes' too."""
    rows = map_rows(SIZES["full"])
    means = {"map_start": 2.0, "map_rl": 4.8, "map_sft_noise0": 6.8, "map_sft_noise0.7": 4.6, "map_sft_noise2": 1.8}
    means |= {"map_sft_pairs250": 3.0, "map_rl_pairs250": 4.0, "map_rl_judge4": 1.5}
    made = {(row, 0): result(row, 0, level, benchmarks=(COMPLEX,)) for row, level in means.items()}
    lines = lines_of(made, rows, 0.7, 1000.0)
    assert lines["target noise"]["rl"].places == lines["target noise"]["sft"].places == (0.0, 0.7, 2.0)
    assert lines["complex pairs"]["rl"].places == (250.0, 1000.0)
    assert lines["complex pairs"]["sft"].runs[1] == lines["target noise"]["sft"].runs[1]
    assert lines["judge noise"]["rl"].places == (0.0, 4.0)
    by_axis = {one.axis: one.place for one in crossings(lines, RESAMPLES)}
    assert by_axis["target noise"] == pytest.approx(0.65, abs=0.2) and by_axis["judge noise"] is not None
    assert draw(lines, crossings(lines, RESAMPLES), tmp_path / "map.png", 0.7, RESAMPLES).stat().st_size > 10_000


def test_the_places_of_an_axis_have_the_same_seeds() -> None:
    """A place that one seed has reached makes no slope out of seeds: it waits for the others, unless it is all that
    there is beside the point where the axes meet."""
    rows = map_rows(SIZES["full"])
    made = {
        (row, seed): result(row, seed, 5.0 + seed, benchmarks=(COMPLEX,))
        for row in ("map_start", "map_rl", "map_sft_noise0", "map_sft_noise0.7", "map_sft_noise2", "map_rl_judge2")
        for seed in range(3)
        if seed == 0 or row not in ("map_sft_noise2", "map_rl_judge2")
    }
    lines = lines_of(made, rows, 0.7, 1000.0)
    for line in lines["target noise"].values():
        assert line.places == (0.0, 0.7) and all(runs.keys() == {0, 1, 2} for runs in line.runs)
    for line in lines["judge noise"].values():
        assert line.places == (0.0, 2.0) and all(runs.keys() == {0} for runs in line.runs)


def test_names_of_lines_keep_apart() -> None:
    heights = _apart({"rl": 5.0, "sft": 3.1, "start": 3.2, "other": 3.3})
    assert heights == {"sft": 3.1, "start": 3.6, "other": 4.1, "rl": 5.0}
