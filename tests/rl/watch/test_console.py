"""The line that a person reads."""

from __future__ import annotations

import pytest
from rl.watch.console import REPEAT, Table, cells, duration
from run_lines import NOTHING, line


def test_a_step_fits_a_log_of_200_columns_below_its_heading() -> None:
    """At the paper's size: 4-digit lengths, seconds of minutes, all phases, six parts of the score."""
    heading, row = Table().lines(cells(line(1999), 2000, 3 * 3600)).split("\n")
    assert len(heading) == len(row) <= 200
    for name, text in {"reward": f"{line(1999)['reward']:.3f}", "failed": "1/128", "left": "3 h 00"}.items():
        end = heading.index(f" {name}") + 1 + len(name)
        assert row[:end].endswith(text), name


def test_a_step_without_values_has_a_line() -> None:
    """A step on which nothing was scored or trained must not end the run in its own log, nor show a number."""
    shown = cells(line(3, **NOTHING), 100, None)
    assert {shown[name] for name in ("reward", "kl", "entropy", "grad", "latency", "trained/s", "left")} == {"-"}
    assert shown["failed"] == "128/128" and "sc" not in shown


def test_the_heading_comes_again_after_a_while_and_with_other_columns() -> None:
    """Otherwise a row of a long log has figures without names, or under those of others."""
    table, shown = Table(), cells(line(0), 100, None)
    counts = [table.lines(shown).count("\n") for _ in range(REPEAT + 1)]
    assert counts == [1] + [0] * (REPEAT - 1) + [1]
    assert table.lines(cells(line(1, parts={}), 100, None)).count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.554, "0.55 s"), (45.2, "45 s"), (720, "12 min"), (12_000, "3 h 20"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
