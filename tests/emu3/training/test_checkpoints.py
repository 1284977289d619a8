"""Which checkpoints are read and removed: the run's own, and whole ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from torch import nn

from emu3.training.checkpoints import checkpoint_bytes, fault_of, numbered, rotate, save_time, write_note

STEM, NOTE = "step_", "manifest.json"


def made(place: Path, *steps: int) -> list[Path]:
    """Whole checkpoints of these steps."""
    folders = [place / f"{STEM}{step:06d}" for step in steps]
    for folder in folders:
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_text(folder.name)
        write_note(folder, NOTE)
    return folders


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_what_a_person_keeps_is_neither_read_nor_removed(tmp_path: Path) -> None:
    """`cp -r step_000002 step_000002_best` was rotated away."""
    made(tmp_path, 1, 2, 3)
    for other in ("step_000002_best", "step_best", "step_1.bak", "my_step_000001"):
        shutil.copytree(tmp_path / "step_000002", tmp_path / other)
    (tmp_path / "step_000009").write_text("a file")
    assert [step for step, _ in numbered(tmp_path, STEM)] == [1, 2, 3]
    rotate(tmp_path, STEM, NOTE, keep=1, written=tmp_path / "step_000003")
    assert names(tmp_path) == sorted(
        ["step_000003", "step_000002_best", "step_best", "step_1.bak", "my_step_000001", "step_000009"]
    )


def test_a_broken_one_does_not_count(tmp_path: Path) -> None:
    """Guards a rotation that keeps two folders of which one cannot be loaded."""
    folders = made(tmp_path, 1, 2, 3)
    (folders[1] / "model" / "weights").unlink()
    rotate(tmp_path, STEM, NOTE, keep=2, written=folders[2])
    assert names(tmp_path) == ["step_000001", "step_000002", "step_000003"]


def test_what_was_just_written_stays(tmp_path: Path) -> None:
    """A run that went on from an older checkpoint, since the newest is damaged, removed what it wrote."""
    folders = made(tmp_path, 1, 2, 5, 6)
    rotate(tmp_path, STEM, NOTE, keep=1, written=folders[1])
    assert names(tmp_path) == ["step_000002", "step_000005", "step_000006"]


def test_the_best_one_stays(tmp_path: Path) -> None:
    folders = made(tmp_path, 1, 2, 3, 4)
    rotate(tmp_path, STEM, NOTE, keep=1, written=folders[3], also=[folders[1]])
    assert names(tmp_path) == ["step_000002", "step_000004"]


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that was moved to another disk and linked: removing it failed, and with it every later one."""
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    folders = made(run, 1, 2, 3)
    shutil.move(folders[0], scratch)
    folders[0].symlink_to(scratch)
    assert fault_of(folders[0], NOTE) is None
    rotate(run, STEM, NOTE, keep=2, written=folders[2])
    assert names(run) == ["step_000002", "step_000003"] and (scratch / "model" / "weights").is_file()
    assert f"{folders[0]} is a link, which is removed; {scratch} stays" in capsys.readouterr().out


def test_a_link_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "step_000001"
    folder.symlink_to(tmp_path / "gone")
    assert numbered(tmp_path, STEM) == [(1, folder)]
    assert fault_of(folder, NOTE) == f"it leads to {tmp_path / 'gone'}, which is not there"


def test_what_cannot_be_removed_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = made(tmp_path, 1, 2)

    def busy(path: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("emu3.training.checkpoints.remove", busy)
    rotate(tmp_path, STEM, NOTE, keep=1, written=folders[1])
    assert f"warning: {folders[0]} was not removed: [Errno 16]" in capsys.readouterr().out


@pytest.mark.parametrize("note", ["digests", "sizes"])
def test_notes_of_older_runs_are_read(tmp_path: Path, note: str) -> None:
    [folder] = made(tmp_path, 1)
    files = json.loads((folder / NOTE).read_text())["files"]
    old = files if note == "digests" else {name: (folder / name).stat().st_size for name in files}
    (folder / NOTE).write_text(json.dumps(old))
    assert fault_of(folder, NOTE) is None
    (folder / "model" / "weights").write_text("other bytes!")
    assert fault_of(folder, NOTE) is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"version": 3, "files": {}}', "has format 3"),
        ("[1]", "is not what"),
        ("{}", "names no files"),
        ("{", "not JSON"),
    ],
)
def test_a_note_of_another_kind_is_a_fault(tmp_path: Path, text: str, words: str) -> None:
    [folder] = made(tmp_path, 1)
    (folder / NOTE).write_text(text)
    assert words in str(fault_of(folder, NOTE))


def test_the_time_of_a_save_is_said_where_it_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's warning that comes 120 s before its end is too late for 119 GB at 0.5 GB/s."""
    monkeypatch.setattr("emu3.training.checkpoints.write_speed", lambda folder, most, seconds: 0.5e9)
    assert save_time(tmp_path, 119e9) == (
        "a checkpoint has 119 GB and takes 238 s here (0.50 GB/s): announce a job's end so much earlier, as Slurm does "
        "by --signal=B:USR1@SECONDS"
    )
    assert save_time(tmp_path, 2e9) is None and save_time(tmp_path, 1e6) is None


def test_the_size_of_a_checkpoint(tmp_path: Path) -> None:
    """By hand: 8B in bfloat16 under DeepSpeed has 2 + 12 bytes a parameter, 119 GB."""
    model = nn.Linear(10, 10, bias=False)
    assert checkpoint_bytes(model, sharded=False) == 100 * (4 + 8)
    assert checkpoint_bytes(model.bfloat16(), sharded=True) == 100 * (2 + 12)
    model.weight.requires_grad_(False)
    assert checkpoint_bytes(model, sharded=True) == 200
