"""Files and folders that are whole or absent, on filesystems that cannot do everything."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from emu3.errors import run_main
from emu3.files import remove, whole_file, whole_folder, write_json, write_speed


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Some network and FUSE filesystems cannot sync a folder: nothing at all could be written there."""
    fsync = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    write_json(tmp_path / "a.json", 1)
    with whole_folder(tmp_path / "b") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "c").write_text("c")
    assert (tmp_path / "a.json").read_text() == "1\n" and (tmp_path / "b" / "inner" / "c").is_file()


def test_a_file_that_cannot_be_synced_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes may not be there after a crash: that is no file to rely on."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "a.json", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("leads", ["somewhere", "nowhere"])
def test_a_folder_in_place_of_a_link(tmp_path: Path, leads: str) -> None:
    """`final` was moved to another disk and linked: writing it anew was a traceback."""
    place, elsewhere = tmp_path / "final", tmp_path / "scratch"
    if leads == "somewhere":
        elsewhere.mkdir()
        (elsewhere / "old").touch()
    place.symlink_to(elsewhere)
    with whole_folder(place) as folder:
        (folder / "new").touch()
    assert [path.name for path in place.iterdir()] == ["new"] and not place.is_symlink()
    assert elsewhere.exists() == (leads == "somewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "scratch"][: 1 + elsewhere.exists()]


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    remove(tmp_path / "link")
    remove(tmp_path / "never")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    remove(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_speed_of_a_disk(tmp_path: Path) -> None:
    assert write_speed(tmp_path, 2**20) > 0 and not list(tmp_path.iterdir())


class SafetensorError(Exception):
    """As the library's, which is a class of its own."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a.json"), "runs/a.json: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk of the output: No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk of the output: Disk quota exceeded"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "the disk of the output: Error while serializing: I/O error: No space left on device (os error 28)",
        ),
    ],
    ids=["a file", "no file", "quota", "safetensors"],
)
def test_a_full_disk_is_one_line_everywhere(capsys: pytest.CaptureFixture[str], error: Exception, message: str) -> None:
    """A write of Python's own knows no file's name, safetensors has a class of its own: both were tracebacks."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    "error", [SafetensorError("header too large"), OSError(errno.EPIPE, "Broken pipe"), KeyError(1)]
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run_main(main)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("--output-dir=~/runs", "--output-dir={home}/runs"),
        ("output_dir=~/runs", "output_dir={home}/runs"),
        ("~/runs", "{home}/runs"),
        ("data.sets=[~/a]", "data.sets=[~/a]"),
        ("make it ~/5", "make it ~/5"),
    ],
)
def test_the_home_folder_in_arguments(monkeypatch: pytest.MonkeyPatch, given: str, seen: str) -> None:
    """A shell expands `~` at the begin of a word alone: `output_dir=~/runs` made a folder called `~`."""
    found: list[Any] = []
    monkeypatch.setattr("sys.argv", ["command", given])

    def main() -> None:
        import sys

        found.extend(sys.argv[1:])

    run_main(main)
    assert found == [seen.format(home=Path.home())]


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError), whole_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert not list(tmp_path.iterdir())
