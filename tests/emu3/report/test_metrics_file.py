"""`metrics.jsonl` over resumes, kills and other people's files."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emu3.errors import UserError
from emu3.report.metrics_file import NAME, MetricsFile, Spared, lines_before, read_lines, shown_settings


def test_resume_drops_the_lines_of_steps_to_come(tmp_path: Path) -> None:
    """Guards curves in which a stretch occurs twice; the line that a kill cut short goes as well."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(4)) + '{"step": 4, "rew')
    file = MetricsFile(tmp_path, lines_before(tmp_path, 2))
    file.append({"step": 2})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert [line["step"] for line in file.lines] == [0, 1, 2]


def test_a_line_is_there_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    """A report or a person reads while the run writes; a killed run must not lose its last steps in a buffer."""
    file = MetricsFile(tmp_path, lines_before(tmp_path, 0))
    file.append({"step": 0})
    assert read_lines(tmp_path) == [{"step": 0}]
    with pytest.raises(ValueError):
        file.append({"step": 1, "reward": float("nan")})


def test_another_file_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics.jsonl does not exist"):
        read_lines(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"loss": 1}\n')
    with pytest.raises(UserError, match="line 2: not a JSON object with a step"):
        read_lines(tmp_path)


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may become longer than `room` bytes; a write that starts below is cut off there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_cuts_no_line_and_loses_none(tmp_path: Path) -> None:
    """Half a line in the middle makes the whole file unreadable; what could not be written comes with the next."""
    file = MetricsFile(tmp_path, [{"step": 0}])
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with full_disk(size + 5):
        for step in (1, 2):
            with pytest.raises(OSError):
                file.append({"step": step})
            assert (tmp_path / "metrics.jsonl").stat().st_size == size
    file.append({"step": 3})
    assert read_lines(tmp_path) == file.lines == [{"step": step} for step in range(4)]


def test_trouble_with_an_output_is_said_once_and_a_bug_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    """A page that cannot be written must not end a run of days, nor fill its log."""
    spared = Spared()
    for name in ("report.html", "report.html", "image"):
        with spared.output(name):
            raise OSError(28, "No space left on device", "/runs/x")
    with spared.output("report.html"):
        raise UserError("settings.json is not JSON")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0] == "warning: no report.html: [Errno 28] No space left on device: '/runs/x'; the run goes on"
    with pytest.raises(KeyError), spared.output("report.html"):
        raise KeyError("loss")


def test_settings_are_flat_and_without_keys() -> None:
    tree = {"judge": {"url": "http://me:key@a:1/v1,https://b/v1", "model": None}, "steps": 3}
    assert shown_settings(tree) == {"judge.url": "http://a:1/v1,https://b/v1", "steps": 3}


def test_a_disk_that_is_full_at_the_start_gets_the_lines_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that went on from a checkpoint ended with a traceback before its first step."""
    (tmp_path / NAME).write_text('{"step": 0}\n{"step": 1}\n')

    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield path

    with monkeypatch.context() as patch:
        patch.setattr("emu3.report.metrics_file.whole_file", full)
        file = MetricsFile(tmp_path, [{"step": 0}])
        with pytest.raises(OSError, match="No space left"):
            file.append({"step": 1, "reward": 2.0})
    file.append({"step": 2})
    assert [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()] == [
        {"step": 0}, {"step": 1, "reward": 2.0}, {"step": 2},
    ]  # fmt: skip
