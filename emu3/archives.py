"""Archives from strangers, unpacked so that nothing lands outside of one new folder.

An archive names its own files, so `../../.ssh/authorized_keys` is a name too, and a link in it can lead anywhere.
Only plain files and folders with relative names are taken; a link, a device or a name that leads out refuses the
whole archive. The folder appears when everything is in it, or not at all.
"""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from emu3.errors import UserError
from emu3.files import whole_folder

# What a damaged archive makes its readers raise, which take sizes and places in it as they are; RuntimeError is also
# zipfile's word for an encrypted member.
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    EOFError, ValueError, LookupError, OverflowError, RuntimeError,
)  # fmt: skip
MAX_FILES, MAX_RATIO, SMALL = 2**24, 200, 2**30
"""Bounds: members; bytes that a byte of the archive may unpack to; bytes that any archive may unpack to."""
# Names that a disk cannot hold, or one name for a file and a folder. Without a number it is a decompressor's error.
BAD_NAMES = (None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)

# Python 3.11.2, which Debian 12 has, is without it; `_Room` refuses all that it would refuse.
_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar (plain, gz, bz2, xz) or a zip file as the whole of `folder`, which must not be there yet.

    Raises UserError, with nothing written, if `folder` exists, the archive is missing, damaged, or neither kind, holds
    anything but plain files and folders below itself, or unpacks to more than the bounds or than the disk has room for.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: name a folder that is not, to unpack {archive} into")
    if not archive.is_file():
        raise UserError(f"archive {archive} does not exist")
    try:
        with whole_folder(folder) as temporary:
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, temporary)
            elif tarfile.is_tarfile(archive):
                _unpack_tar(archive, temporary)
            else:
                raise UserError(f"{archive} is damaged, or neither a tar (plain, gz, bz2, xz) nor a zip file")
    except DAMAGE as error:
        raise UserError(f"{archive} cannot be unpacked: {_one_line(error)}") from None
    except OSError as error:
        if error.errno not in BAD_NAMES:
            raise
        raise UserError(f"{archive} cannot be unpacked: {_one_line(error)}") from None


def _unpack_tar(archive: Path, folder: Path) -> None:
    room = _Room(archive, folder)
    # One pass: a compressed archive cannot be read twice in less than twice the time.
    with tarfile.open(archive) as tar:
        for member in tar:
            room.take(member.name, member.isreg() or member.isdir(), member.size)
            tar.extract(member, folder, set_attrs=False, **_FILTER)
        # The check sum of a compressed archive stands behind the last member, where tarfile has no more to read.
        while tar.fileobj is not None and tar.fileobj.read(2**20):
            pass


def _unpack_zip(archive: Path, folder: Path) -> None:
    room = _Room(archive, folder)
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            mode = stat.S_IFMT(member.external_attr >> 16)
            room.take(member.filename, mode in (0, stat.S_IFREG, stat.S_IFDIR), member.file_size)
            file.extract(member, folder)


class _Room:
    """What an archive may still unpack to: files, and bytes, which the disk has and which its own size explains."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self._archive = archive
        self._files = MAX_FILES
        self._free = shutil.disk_usage(folder).free
        self._bytes = max(MAX_RATIO * archive.stat().st_size, SMALL)

    def take(self, name: str, plain: bool, size: int) -> None:
        """Raises UserError if the next member may not be unpacked. The library's own tar filter is more lenient: it
        leaves out leading slashes, and lets links and backslashes through."""
        self._files, self._free, self._bytes = self._files - 1, self._free - size, self._bytes - size
        why = None
        if not name.isprintable():
            why = "its member {} has a name that cannot be printed"
        elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            why = "its member {} leads out of the folder"
        elif not plain:
            why = "its member {} is a link or a device"
        elif self._free < 0:
            why = "at {} it needs more room than the disk has"
        elif self._bytes < 0:
            why = f"at {{}} it has unpacked to more than {MAX_RATIO} times its size"
        elif self._files < 0:
            why = f"at {{}} it has more than {MAX_FILES} members"
        if why is not None:
            raise UserError(f"{self._archive} is refused: {why.format(ascii(name)[:200])}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{error or 'it ends too early'}".split())[:300]
