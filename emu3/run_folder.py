"""A run's folder: which run it holds, and which process writes there now. Every long command asks here.

Which run: the settings that decide its content stand in one JSON file with a format `version` (`SettingsFile`); a
start with others is refused in one line that names the first difference. Files of an older format are taken up, of a
newer one refused.

Which process: `owned` locks `.owner` in the folder (flock) and refreshes it every `BEAT` seconds. A second start is
refused with host, process and start time of the first. The lock of a process that died is free at once for processes
on the same machine. Where a filesystem has no locks, keeps them to one machine, or holds those of a machine that is
gone, the refreshing decides: a folder that nobody refreshed for `STALE` seconds is taken over, so that a job that is
queued again on another machine goes on after that time. Clocks are not compared: whether the file changes is looked
at. A process that was suspended for longer and finds its folder taken ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from emu3.errors import UserError
from emu3.files import read_json, write_json

OWNER = ".owner"
BEAT, STALE = 15.0, 120.0
VERSION = "version"
NOT_SET = object()

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_TAKEN = (errno.EAGAIN, errno.EACCES)


def flat(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested values by their path, such as `optimizer.lr`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, separator, f"{prefix}{name}{separator}")
        else:
            found[prefix + name] = value
    return found


def differences(found: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings by their path in which two runs differ: what was found, and what it is now; None where it is not set.

    Values are compared as JSON has them: a tuple is a list there.
    """
    before, after = flat(found), flat(json.loads(json.dumps(now)))
    keys = sorted(before.keys() | after.keys())
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def refuse_differences(where: Path, found: Mapping[str, Any], now: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError that names the first difference, if there is one. remedy: what to do about it."""
    for key, (before, after) in differences(found, now).items():
        raise _holds_another(where, key, before, after, remedy)


def check_version(where: Path, found: Any, newest: int) -> int:
    """The format version of a JSON object, 1 where it has none. Raises UserError if it is no object, or one of a
    version above `newest`."""
    version = found.get(VERSION, 1) if isinstance(found, Mapping) else None
    if not isinstance(version, int):
        raise UserError(f"{where} is not what this command writes: choose another folder, or remove it")
    if version > newest:
        raise UserError(f"{where} has format {version}, this version of the project reads up to {newest}: update it")
    return version


@dataclass(frozen=True)
class SettingsFile:
    """The settings of a run in one JSON file of its folder.

    Names are dotted and stand for all below them. version: of the file's format, 1 where it says none. remedy: what to
    do about a difference. decisive: settings that have to stay; all of them if left out. said: of the others, those
    whose change is worth a line on standard output. later: values, by their whole names, that a file had in effect
    before these names were written. unknown: settings that an older file lacks and that nobody knows any more: they
    are taken as they are now.
    """

    path: Path
    version: int
    remedy: str
    decisive: Sequence[str] | None = None
    said: Sequence[str] = ()
    later: Mapping[str, Any] = field(default_factory=dict)
    unknown: Sequence[str] = ()

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise UserError if the file holds other settings, has another format or is no file; nothing if there is
        none."""
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise UserError(f"{self.path} is no file, and the settings of the run belong there: {self.remedy}")
        found = read_json(self.path)
        check_version(self.path, found, self.version)
        before = {**self.later, **flat({name: value for name, value in found.items() if name != VERSION})}
        now = flat(json.loads(json.dumps(settings)))
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key, NOT_SET), now.get(key, NOT_SET)
            if old == new or (old is NOT_SET and _is_among(key, self.unknown)):
                continue
            if any(other.startswith(f"{key}.") for other in now):  # none before, and keys of its own now
                continue
            if self.decisive is None or _is_among(key, self.decisive):
                raise _holds_another(self.path.parent, key, old, new, self.remedy)
            if _is_among(key, self.said):
                print(f"note: {self.path.parent}: {key} was {_shown(old)}, now it is {_shown(new)}", flush=True)

    def record(self, settings: Mapping[str, Any]) -> None:
        """`check`, and write what the settings are now."""
        self.check(settings)
        write_json(self.path, {VERSION: self.version, **settings})


def _is_among(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _holds_another(where: Path, key: str, before: Any, now: Any, remedy: str) -> UserError:
    return UserError(f"{where} holds a run with {key}={_shown(before)}, this one has {key}={_shown(now)}: {remedy}")


def _shown(value: Any) -> str:
    return "(not set)" if value is NOT_SET else json.dumps(value, ensure_ascii=False)


@contextmanager
def owned(folder: Path, share: tuple[int, int] = (0, 1)) -> Iterator[None]:
    """Own `folder` for as long as the context lasts. Raises UserError if another live process does.

    share: index and number of processes that share the work in the folder, each with files of its own; those of
    another number are other runs. Ranks of one run own it through their first. Waits up to `STALE` seconds for a sign
    of an owner on another machine.
    """
    index, number = share
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    name = OWNER if number == 1 else f"{OWNER}.{index}-of-{number}"
    try:
        _refuse_other_shares(folder, number)
        lock = _Lock(folder, folder / name)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        yield  # nobody can write here; a run that is finished does not have to
        return
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # what was made for nothing
            for path in made:
                path.rmdir()


class _Lock:
    def __init__(self, folder: Path, path: Path) -> None:
        self._path = path
        self._file = _taken(folder, path)
        note = {
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
            "command": _command(),
        }
        with suppress(OSError):  # a full disk: the lock holds without a note
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(note).encode(), 0)
        # A child that is forked, such as a data loader's worker, would hold the lock beyond this process's end.
        os.register_at_fork(after_in_child=self._close)
        self._ended = threading.Event()
        threading.Thread(target=self._refresh, daemon=True).start()

    def release(self) -> None:
        self._ended.set()
        if self._is_ours():
            self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _is_ours(self) -> bool:
        return _same(self._file, self._path)

    def _refresh(self) -> None:
        while not self._ended.wait(BEAT):
            if self._is_ours():
                with suppress(OSError):
                    os.utime(self._path)
            elif self._path.exists():
                owner = _owner(self._path)
                print(f"error: {self._path.parent} was taken over by {owner}; this process ends", file=sys.stderr)
                os._exit(2)


def _taken(folder: Path, path: Path) -> int:
    """A descriptor of the folder's lock file, locked."""
    waited = False
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except IsADirectoryError:
            raise UserError(f"{path} is a folder: remove it") from None
        except PermissionError:
            if not os.access(folder, os.W_OK):
                raise
            _remove_if_dead(folder, path)
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError as error:
            if error.errno not in (*_NO_LOCKS, *_TAKEN):
                os.close(file)
                raise
            locked = False
            if error.errno in _TAKEN and _note(path).get("boot") in (_boot(), None):
                os.close(file)
                raise _in_use(folder, path) from None
        if locked and not _same(file, path):  # its owner removed it between the two calls
            os.close(file)
            continue
        note = _note(path)
        if waited or not note or (locked and note.get("boot") == _boot()):
            if locked or not note:
                return file
            # Nobody refreshed it, but the lock is held by a machine that is gone, or there are no locks: a new file.
            os.close(file)
            path.unlink(missing_ok=True)
            continue
        print(f"{folder}: waiting up to {STALE:.0f} s for a sign of {_owner(path)}", flush=True)
        if _changes(path):
            os.close(file)
            raise _in_use(folder, path)
        waited = True
        os.close(file)


def _remove_if_dead(folder: Path, path: Path) -> None:
    """Remove the lock file of another user, which may only be read, if its process is surely gone; else UserError."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _note(path).get("boot") == _boot():
                path.unlink()
                return
    except FileNotFoundError:
        return
    except OSError:  # taken; or nobody can tell, or remove it
        pass
    raise UserError(f"{_in_use(folder, path)}. {path} is another user's: remove it if that process is gone")


def _changes(path: Path) -> bool:
    """Whether somebody refreshes the file within `STALE` seconds."""
    before, end = _stamp(path), time.monotonic() + STALE
    while time.monotonic() < end:
        time.sleep(min(1.0, STALE / 10))
        if _stamp(path) != before:
            return _stamp(path) is not None
    return False


def _refuse_other_shares(folder: Path, number: int) -> None:
    for path in folder.glob(f"{OWNER}*"):
        if (path.name == OWNER and number == 1) or path.name.endswith(f"-of-{number}"):
            continue
        with suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _TAKEN:
                    raise _in_use(folder, path) from None
            else:
                path.unlink(missing_ok=True)  # of processes that died


def _in_use(folder: Path, path: Path) -> UserError:
    return UserError(f"{folder} is in use by {_owner(path)}: wait for its end, end it, or choose another folder")


def _owner(path: Path) -> str:
    note = _note(path)
    if not note:
        return "another process"
    return f"{note.get('command')} on {note.get('host')}, process {note.get('pid')}, since {note.get('since')}"


def _note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _boot() -> str:
    """This machine since its start, the same in all of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _command() -> str:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return f"python -m {spec.name}" if spec is not None else Path(sys.argv[0] or "python").name
