"""Files that are whole or absent: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emu3.errors import UserError, one_line

UNTOUCHED = 3600.0
"""Seconds after which a temporary file of another machine that nobody has written to is taken for a leftover."""


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs has not fetched yet."""


def check_fetched(path: Path, kind: str) -> None:
    """Raise `UserError` if git-lfs has not fetched the file yet. kind: what it should be, for the message."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path} is not {kind}: it is a git-lfs pointer: fetch it with `git lfs pull`")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_from(folder: Path | str, place: Path | str) -> str:
    """How a file in `folder` names `place`: by the path between them where both lie in one tree, so that the tree can
    be moved, else by an absolute path. It begins with a dot or a slash, as no Hub id does."""
    start, end = os.path.realpath(folder), os.path.realpath(place)
    if len(Path(os.path.commonpath([start, end])).parts) < 3:
        return end
    path = os.path.relpath(end, start)
    return path if path.startswith("..") else f"./{path}"


def place_from(folder: Path | str, name: str) -> str:
    """The absolute path that `path_from` named; other names, such as Hub ids, as they are."""
    return os.path.normpath(Path(folder).absolute() / name) if name.startswith((".", os.sep)) else name


_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)


def sync(path: Path) -> None:
    """Wait until the path is on the disk; folders of filesystems that cannot sync them are passed over."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise OSError(error.errno, error.strerror, str(path)) from None


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link, but not what the link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_speed(folder: Path, most: int, seconds: float = 10.0) -> float:
    """Bytes per second that reach the disk under `folder`: of one file of random bytes, synced, of at most `most` bytes
    or `seconds`. Raises OSError if it cannot be written."""
    part = os.urandom(2**24)
    written = 0
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.monotonic()
        while written < most and time.monotonic() < start + seconds:
            written += file.write(part)
        file.flush()
        os.fsync(file.fileno())
        return written / (time.monotonic() - start)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes `path`, on an exception nothing is left. What processes that were
    killed left beside `path` is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes `path` (replacing one that is there), else nothing is left. What
    processes that were killed left beside `path` is removed."""
    if path.name.endswith(f".{_writer()}.tmp"):  # the temporary folder of an outer call, which makes it whole
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        if os.path.lexists(path):
            # The two renames leave a moment without `path`, never one with half of it.
            previous = path.with_name(f".{path.name}.{_writer()}.old")
            path.replace(previous)
            temporary.replace(path)
            remove(previous)
        else:
            temporary.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writes that were killed have left directly in `folder`, where nobody else may write now; but nothing
    whose name was not given here, such as somebody's own `.notes.old`."""
    for path in list(folder.glob(".*")):
        if _TEMPORARY.fullmatch(path.name):
            remove(path)


_TEMPORARY = re.compile(r"\..+\.(?:\w+-)?\d+\.(?:tmp|old)")


def _remove_leftovers(path: Path) -> None:
    # Before a new try and not after it: once `path` is there, nobody comes back to it.
    # An .old without its successor is all that a kill between two renames has left of `path`.
    for kind in ("tmp", "old") if path.exists() else ("tmp",):
        for rest in path.parent.glob(f".{glob.escape(path.name)}.*.{kind}"):
            # A second run of the same command may be writing the same file.
            if _TEMPORARY.fullmatch(rest.name) and not _is_written(rest):
                remove(rest)


def _writer() -> str:
    """Who writes, for a temporary name: the machine and the process."""
    return f"{_machine()}-{os.getpid()}"


def _machine() -> str:
    return re.sub(r"\W", "_", socket.gethostname(), flags=re.ASCII)


def _is_written(temporary: Path) -> bool:
    """Whether a process may still write `temporary`: on this machine the one of its name runs, on another one something
    in it changed within `UNTOUCHED` seconds. A name without a machine is of this one."""
    machine, _, pid = temporary.name.split(".")[-2].rpartition("-")
    if machine in ("", _machine()):
        return _is_running(int(pid))
    try:
        changes = [part.lstat().st_mtime for part in (temporary, *temporary.rglob("*"))]
    except OSError:  # it goes while it is read: somebody is at work there
        return True
    return time.time() - max(changes) < UNTOUCHED


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Around the reading of a Parquet file: what Arrow says of a damaged one, in a dozen classes, is a `UserError`."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's own words, not Arrow's
            raise
        raise UserError(f"{path} is not a Parquet file, or is damaged: {one_line(error)}") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all. NaN and infinities are refused."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `UserError` if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        # No JSON, no UTF-8, a number of 5,000 digits, 1,000 brackets deep.
        check_fetched(Path(path), "JSON")
        raise UserError(f"{path} is not JSON: {one_line(error)}") from None
