"""One run per folder, one owner per folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emu3 import run_folder
from emu3.errors import UserError
from emu3.run_folder import OWNER, SettingsFile, differences, flat, owned

HOLD = """
import sys, time
from pathlib import Path
from emu3.run_folder import owned
with owned(Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))):
    print("mine", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holders() -> Iterator[Any]:
    """`holders(folder, index, number)` starts a process that owns a folder."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, index: int = 0, number: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(folder), str(index), str(number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_start_is_refused_and_names_the_first(holders: Any, tmp_path: Path) -> None:
    """Two runs of one command in one folder overwrote each other's checkpoints without a word."""
    first = holders(tmp_path)
    host = os.uname().nodename
    with (
        pytest.raises(UserError, match=rf"is in use by .* on {host}, process {first.pid}, since 2\d\d\d-"),
        owned(tmp_path),
    ):
        pass
    assert (tmp_path / OWNER).is_file()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_folder_of_a_dead_owner_is_free_at_once(holders: Any, tmp_path: Path, how: int) -> None:
    """Guards a lock file that outlives its process, which somebody would have to remove by hand."""
    first = holders(tmp_path)
    first.send_signal(how)
    first.wait()
    start = time.monotonic()
    with owned(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert time.monotonic() - start < run_folder.STALE / 2
    assert not list(tmp_path.iterdir())


def test_another_users_folder_is_refused_while_it_is_in_use(
    holders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of a group the second user could not open the first one's lock, and went on without any."""
    first = holders(tmp_path)
    plain = os.open

    def refused(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if Path(path).name == OWNER and flags & os.O_RDWR and Path(path).exists():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(UserError, match=rf"is in use by .*process {first.pid}, .* another user's"), owned(tmp_path):
        pass
    first.kill()
    first.wait()
    with owned(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()


def test_children_do_not_hold_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    """A forked worker inherits the lock, and lives for seconds after its parent was killed."""
    text = f"""
import os, time
from pathlib import Path
from emu3.run_folder import owned
with owned(Path({str(tmp_path)!r})):
    if os.fork() == 0:
        print("mine", flush=True)
        time.sleep(30)
    time.sleep(30)
"""
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    try:
        process.kill()
        process.wait()
        with owned(tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_shares_of_one_run_work_side_by_side(holders: Any, tmp_path: Path) -> None:
    """Workers that tokenize a dataset share its folder; another number of them, or the same one twice, does not."""
    holders(tmp_path, 0, 2)
    with owned(tmp_path, (1, 2)):
        pass
    with pytest.raises(UserError, match="is in use by"), owned(tmp_path, (0, 2)):
        pass
    for share in ((0, 1), (1, 3)):
        with pytest.raises(UserError, match="is in use by"), owned(tmp_path, share):
            pass


def test_what_dead_shares_left_is_removed(holders: Any, tmp_path: Path) -> None:
    process = holders(tmp_path, 0, 2)
    process.kill()
    process.wait()
    with owned(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [OWNER]


def note_of_another_machine(folder: Path) -> None:
    note = {"host": "node7", "boot": "other", "pid": 1, "since": "2026-11-30 10:00:00", "command": "python -m rl.train"}
    (folder / OWNER).write_text(json.dumps(note))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "STALE", 1.0)
    monkeypatch.setattr(run_folder, "BEAT", 0.1)


@pytest.mark.usefixtures("soon")
def test_a_job_goes_on_on_another_machine_after_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards a job that is queued again on another node and finds the note of the dead one."""
    note_of_another_machine(tmp_path)
    start = time.monotonic()
    with owned(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert time.monotonic() - start >= 1.0
    assert "waiting up to 1 s for a sign of python -m rl.train on node7, process 1" in capsys.readouterr().out


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fault", [None, errno.ENOSYS, errno.EAGAIN], ids=["local locks", "no locks", "locked"])
def test_a_live_owner_on_another_machine_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int | None
) -> None:
    """Guards filesystems that keep locks to one machine or have none: there the refreshing of the file tells."""
    note_of_another_machine(tmp_path)
    without_locks(monkeypatch, fault)
    stamps = iter(range(1000))
    monkeypatch.setattr(run_folder, "_stamp", lambda path: (next(stamps), 0))
    with pytest.raises(UserError, match=r"in use by python -m rl.train on node7"), owned(tmp_path):
        pass


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fault", [errno.ENOSYS, errno.EAGAIN], ids=["no locks", "locked by a machine that is gone"])
def test_a_dead_owner_without_locks_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    note_of_another_machine(tmp_path)
    before = (tmp_path / OWNER).stat().st_ino
    keep = (tmp_path / OWNER).open()  # so that the number is not given again
    without_locks(monkeypatch, fault, before)
    with owned(tmp_path):
        assert (tmp_path / OWNER).stat().st_ino != before
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    keep.close()


@pytest.mark.usefixtures("soon")
def test_the_owner_gives_a_sign_of_life(tmp_path: Path) -> None:
    with owned(tmp_path):
        before = (tmp_path / OWNER).stat().st_mtime_ns
        assert run_folder._changes(tmp_path / OWNER)
        assert (tmp_path / OWNER).stat().st_mtime_ns > before


def test_an_owner_whose_folder_was_taken_ends(holders: Any, tmp_path: Path) -> None:
    """A machine that was suspended comes back while another one works in the folder."""
    text = HOLD.replace("import sys, time", "import sys, time\nfrom emu3 import run_folder\nrun_folder.BEAT = 0.1")
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path), "0", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    (tmp_path / OWNER).unlink()
    note_of_another_machine(tmp_path)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and "was taken over by python -m rl.train on node7" in error


def without_locks(monkeypatch: pytest.MonkeyPatch, fault: int | None, inode: int | None = None) -> None:
    """flock fails with `fault`, on the file `inode` alone if it is given and the fault is of a lock that is held."""
    real = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        number = os.fstat(file if isinstance(file, int) else file.fileno()).st_ino
        if fault is not None and (fault == errno.ENOSYS or inode in (None, number)):
            raise OSError(fault, os.strerror(fault))
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_nested_settings_by_their_path() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": None}) == {"a.b": 1, "a.c": {}, "d": None}
    assert differences({"a": [1, 2], "b": 1}, {"a": (1, 2), "b": 2}) == {"b": (1, 2)}


def record(file: Path, **settings: Any) -> None:
    SettingsFile(
        file, version=2, remedy="choose another folder", decisive=("a", "e", "digest"), said=("judge",),
        later={"e": 7}, unknown=("digest", "judge"),
    ).record(settings)  # fmt: skip


def test_settings_are_kept_compared_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards a folder that goes on as another run, and one whose judge was changed without a word."""
    file = tmp_path / "settings.json"
    record(file, a={"b": 1}, e=7, c=1, judge="one", digest="x")
    record(file, a={"b": 1}, e=7, c=2, judge="two", digest="x")
    assert json.loads(file.read_text()) == {"version": 2, "a": {"b": 1}, "e": 7, "c": 2, "judge": "two", "digest": "x"}
    assert capsys.readouterr().out == f'note: {tmp_path}: judge was "one", now it is "two"\n'
    with pytest.raises(UserError, match=r"holds a run with a\.b=1, this one has a\.b=2: choose another folder$"):
        record(file, a={"b": 2}, e=7, c=1, judge="one", digest="x")
    with pytest.raises(UserError, match=r'digest="x", this one has digest="y"'):
        record(file, a={"b": 1}, e=7, c=1, judge="one", digest="y")


def test_a_folder_where_the_settings_belong_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").mkdir()
    file = SettingsFile(tmp_path / "settings.json", version=1, remedy="choose another folder")
    with pytest.raises(UserError, match=r"settings\.json is no file.*choose another folder"):
        file.check({"a": 1})


def test_settings_of_an_older_format_are_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not written then is what its default was, or not known."""
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"c": 1}))
    record(file, e=7, c=1, judge="one", digest="x")
    assert json.loads(file.read_text())["digest"] == "x" and not capsys.readouterr().out
    file.write_text(json.dumps({"c": 1}))
    with pytest.raises(UserError, match=r"e=7, this one has e=8"):
        record(file, e=8, c=1, judge="one", digest="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 3}', "has format 3, this version of the project reads up to 2: update it"),
        ('{"version": "new"}', "is not what this command writes"),
        ("[]", "is not what this command writes"),
        ("{", "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_compared(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        record(file, a=1, c=1, judge="one", digest="x")
    assert file.read_text() == text
