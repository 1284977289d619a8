"""The table that a person reads while a run goes."""

from __future__ import annotations

import pytest

from emu3.report.console import REPEAT, Table, duration, settled_median, short, step_of


def test_the_heading_comes_again_after_a_while_and_with_other_columns() -> None:
    """Otherwise a row of a long log has values without names, or under those of others."""
    table, shown = Table(), {"step": "0/100", "reward": "6.000"}
    counts = [table.lines(shown).count("\n") for _ in range(REPEAT + 1)]
    assert counts == [1] + [0] * (REPEAT - 1) + [1]
    assert table.lines({"step": "1/100"}).count("\n") == 1


def test_values_stand_below_the_end_of_their_names() -> None:
    table = Table()
    heading, row = table.lines({"step": "  7/2000", "evaluation loss": "1.2", "lr": "3.00e-06"}).split("\n")
    assert len(heading) == len(row)
    assert row[: heading.index("evaluation loss") + len("evaluation loss")].endswith(" 1.2")
    assert table.lines({"step": "  8/2000", "evaluation loss": "-", "lr": "1.00e-06"}).endswith(" - 1.00e-06")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.554, "0.55 s"), (45.2, "45 s"), (720, "12 min"), (12_000, "3 h 20"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (8.125, "8.12"), (812, "812"), (999.6, "1k"), (14_210, "14.2k"), (1.03e6, "1.03M"), (2e9, "2G")],
)
def test_short_numbers(value: float | None, text: str) -> None:
    assert short(value) == text


def test_the_first_step_says_nothing_about_the_others() -> None:
    """It loads and compiles: counted in, the time left of a short run is wrong by hours."""
    assert settled_median([90.0], 1) is None and settled_median([90.0, 2.0], 2) is None
    assert settled_median([90.0, 2.0], 1) == 2.0
    assert settled_median([90.0] * 60 + [2.0] * 50, 1) == 2.0


def test_steps_are_of_one_width() -> None:
    assert step_of(7, 2000) == "   7/2000" and step_of(2000, 2000) == "2000/2000"
