"""The line of a step that a person reads."""

from __future__ import annotations

from run_lines import NOTHING, line

from emu3.report.console import Table
from rl.watch.watch import cells


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


def test_a_step_with_other_parts_has_a_heading_of_its_own() -> None:
    """Its values would stand under the names of others."""
    table = Table()
    assert [
        table.lines(cells(line(step, parts=parts), 100, None)).count("\n")
        for step, parts in enumerate(({"sc": 6.0}, {"sc": 5.0}, {}))
    ] == [1, 0, 1]
