"""Drawings: that they are well-formed, bounded in size, and lose nothing that a person has to see."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from emu3.report.charts import (
    HEIGHT,
    Curve,
    first_and_last,
    line_chart,
    lines_chart,
    nice_ticks,
    running_mean,
    stacked_chart,
)  # fmt: skip


def paths(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """Points of the paths of a class."""
    found = [node.get("d", "") for node in ElementTree.fromstring(svg).iter("path") if kind in node.get("class", "")]
    pattern = r"(-?[\d.]+) (-?[\d.]+)"
    return [[(float(x), float(y)) for x, y in re.findall(pattern, path)] for path in found]


def test_a_spike_of_one_step_in_many_is_drawn() -> None:
    """Every n-th point, or the mean of n, would hide the step at which a run broke."""
    values = [1.0] * 20_000
    values[12_345], values[777] = 100.0, -50.0
    (raw,) = paths(line_chart("norm", range(20_000), values), "raw")
    assert len(raw) < 500
    assert min(y for _, y in raw) == pytest.approx(10, abs=1) and max(y for _, y in raw) == pytest.approx(184, abs=1)


def test_the_ends_of_a_curve_are_there() -> None:
    (raw,) = paths(line_chart("x", range(5000), np.linspace(0, 1, 5000).tolist()), "raw")
    assert raw[0][0] == pytest.approx(46, abs=0.2) and raw[-1][0] == pytest.approx(430, abs=0.2)


def test_parts_are_stacked_on_each_other() -> None:
    """The bottom of a part is the top of the one below it, at every place, and the last top is the sum."""
    parts = {"sample": [1.0, 2.0, 3.0], "judge": [1.0, 1.0, 1.0], "train": [2.0, 2.0, 6.0]}
    areas = paths(stacked_chart("seconds", [0, 1, 2], parts), "area")
    for below, above in pairwise(areas):
        assert below[:3] == above[:2:-1]
    sums = [4.0, 5.0, 10.0]
    assert [184 - y for _, y in areas[-1][:3]] == pytest.approx([174 * each / 10 for each in sums], abs=0.1)
    many = paths(stacked_chart("seconds", range(3000), {"a": [1.0] * 3000, "b": [0.0] * 3000}), "area")
    assert len(many[0]) == 400


def test_charts_of_one_scale_agree() -> None:
    """A task at 2 of 10 must not look like one at 9."""
    charts = [line_chart("task", [0, 1], [value, value], bounds=(0.0, 10.0), small=True) for value in (2.0, 9.0)]
    heights = [paths(chart, "smooth")[0][0][1] for chart in charts]
    assert HEIGHT > heights[0] > heights[1] > 0
    assert all(">10</text>" in chart and ">step</text>" in chart and "raw" not in chart for chart in charts)


def test_a_score_beyond_its_scale_is_in_the_drawing() -> None:
    (smooth,) = paths(line_chart("x", [0, 1], [-5.0, 12.0], bounds=(0.0, 10.0)), "smooth")
    assert all(10 <= y <= 184 for _, y in smooth)


def test_where_a_curve_began_and_ended_is_no_single_step() -> None:
    """Of two noisy steps, the first and the last, a page said "3.1 to 9.8" where nothing had been learnt."""
    assert first_and_last([0.0, 10.0] * 200) == (5.0, 5.0)
    assert first_and_last([1.0, 3.0, 5.0, 7.0]) == (2.0, 6.0) and first_and_last([4.0]) == (4.0, 4.0)
    assert first_and_last([float(value) for value in range(20)]) == (2.0, 17.0)


def test_a_short_curve_is_drawn_once() -> None:
    """Its running mean is itself: a faint line behind it needs no legend."""
    assert not paths(line_chart("x", range(20), list(range(20))), "raw")


@pytest.mark.parametrize("steps", [1, 2, 3, 400, 401, 403])
def test_any_number_of_steps_can_be_drawn(steps: int) -> None:
    values = [5.0] * steps
    for svg in (
        line_chart("<&", range(steps), values),
        lines_chart("<&", [Curve("a&b", range(steps), values)]),
        stacked_chart("<&", range(steps), {"a": values}),
        stacked_chart("nothing", range(steps), {"a": [0.0] * steps}),
    ):
        assert "nan" not in svg and ElementTree.fromstring(svg).get("aria-label")


def test_running_mean_keeps_the_mean_of_a_line() -> None:
    values = [float(v) for v in range(240)]
    smooth = running_mean(values)
    assert smooth[120] == 120.0 and len(smooth) == 240 and smooth[0] == np.mean(values[:11])


def test_ticks_are_round_and_span() -> None:
    assert nice_ticks(0.13, 9.7) == [0.0, 5.0, 10.0]
    assert nice_ticks(3.0, 3.0) == [3.0]


def test_an_exact_curve_is_drawn_through_its_values() -> None:
    """The running mean of a schedule bends at its ends, and a jump of the memory becomes a slope."""
    svg = line_chart("memory", range(200), [60.0] * 100 + [70.0] * 100, exact=True)
    (drawn,) = paths(svg, "smooth")
    assert len({y for _, y in drawn}) == 2 and not paths(svg, "raw")


def test_a_curve_of_one_point_is_seen() -> None:
    """A path of one place draws nothing: the page of a run after its first step had empty frames."""
    for svg in (line_chart("x", [3], [1.0]), lines_chart("x", [Curve("a", [3], [1.0])])):
        (drawn,) = paths(svg, "smooth") or paths(svg, "line")
        assert len(drawn) == 2 and drawn[0] == drawn[1]


def test_a_sparse_curve_among_dense_ones_is_marked_and_a_raw_one_drawn_whole() -> None:
    """Four evaluations beside a thousand steps look like a second training loss; a spike must not leave the chart."""
    training = Curve("training", range(1000), [2.0] * 500 + [9.0] + [2.0] * 499, raw=True)
    evaluation = Curve("evaluation", [250, 500, 750, 999], [2.5, 2.4, 2.3, 2.2])
    svg = lines_chart("loss", [training, evaluation])
    (raw,) = paths(svg, "raw")
    assert min(y for _, y in raw) == pytest.approx(10, abs=25) and len(paths(svg, "line")) == 2
    (marks,) = (node for node in ElementTree.fromstring(svg).iter("path") if "marks" in node.get("class", ""))
    assert marks.get("class") == "marks c1" and marks.get("d", "").count("h0") == 4
    assert "marks" not in lines_chart("loss", [evaluation])
