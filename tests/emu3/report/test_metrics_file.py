"""`metrics.jsonl` over resumes, kills and other people's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rl.watch.metrics_file import MetricsFile, read_lines

from emu3.errors import UserError


def test_resume_drops_the_lines_of_steps_to_come(tmp_path: Path) -> None:
    """Guards curves in which a stretch occurs twice; the line that a kill cut short goes as well."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(4)) + '{"step": 4, "rew')
    file = MetricsFile(tmp_path, 2)
    file.append({"step": 2})
    file.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert [line["step"] for line in file.lines] == [0, 1, 2]


def test_a_line_is_there_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    """A report or a person reads while the run writes; a killed run must not lose its last steps in a buffer."""
    file = MetricsFile(tmp_path, 0)
    file.append({"step": 0})
    assert read_lines(tmp_path) == [{"step": 0}]
    with pytest.raises(ValueError):
        file.append({"step": 1, "reward": float("nan")})
    file.close()


def test_another_file_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics.jsonl does not exist"):
        read_lines(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"loss": 1}\n')
    with pytest.raises(UserError, match="line 2: not a JSON object with a step"):
        read_lines(tmp_path)
