"""An archive names its own files; none of them may land outside of the folder it is unpacked into."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from emu3 import archives
from emu3.archives import unpack
from emu3.errors import UserError

FILES = {"OUT/list/a.json": b"{}", "OUT/feature/x.pth": b"x" * 10_000, "OUT/feature/ü 1.pth": b""}


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_a_plain_archive_is_unpacked_whole(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "data.archive"
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("OUT")
            for name, data in FILES.items():
                archive.writestr(name, data)
    else:
        members = [(member("OUT", tarfile.DIRTYPE), b""), *((member(name), data) for name, data in FILES.items())]
        write_tar(path, members, mode)
    unpack(path, tmp_path / "out")
    assert everything(tmp_path / "out") == FILES


EVIL = [
    (member("../evil"), "leads out of the folder"),
    (member("a/../../evil"), "leads out of the folder"),
    (member("/tmp/evil-of-a-test"), "leads out of the folder"),
    (member("..\\evil"), "leads out of the folder"),
    (member("link", tarfile.SYMTYPE, "../../evil"), "is a link or a device"),
    (member("link", tarfile.SYMTYPE, "inside"), "is a link or a device"),
    (member("link", tarfile.LNKTYPE, "../evil"), "is a link or a device"),
    (member("pipe", tarfile.FIFOTYPE), "is a link or a device"),
    (member("disk", tarfile.BLKTYPE), "is a link or a device"),
    (member("a\x1b[2Jb"), "cannot be printed"),
]


@pytest.mark.parametrize(("evil", "message"), EVIL)
def test_a_tar_that_leads_out_is_refused_and_nothing_written(
    tmp_path: Path, evil: tarfile.TarInfo, message: str
) -> None:
    """Members before the evil one are undone, those after it never written."""
    path = write_tar(tmp_path / "evil.tar", [(member("good"), b"1"), (evil, b""), (member("later"), b"2")])
    before = everything(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        unpack(path, tmp_path / "deep" / "out")
    assert everything(tmp_path) == before
    assert not list((tmp_path / "deep").iterdir())
    assert not Path("/tmp/evil-of-a-test").exists()
    assert str(error.value).isprintable()


def test_a_link_that_a_later_member_writes_through(tmp_path: Path) -> None:
    """Each name is harmless alone: `d` is a link, `d/evil` a file below it."""
    members = [(member("d", tarfile.SYMTYPE, str(tmp_path)), b""), (member("d/evil"), b"x")]
    with pytest.raises(UserError, match="link"):
        unpack(write_tar(tmp_path / "evil.tar", members), tmp_path / "out")
    assert list(everything(tmp_path)) == ["evil.tar"]


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-of-a-test", "a/../../evil"])
def test_a_zip_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """zipfile would quietly write the file elsewhere, over another."""
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("good", "1")
        archive.writestr(name, "2")
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack(tmp_path / "evil.zip", tmp_path / "out")
    assert list(everything(tmp_path)) == ["evil.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or a device"):
        unpack(tmp_path / "evil.zip", tmp_path / "out")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2", "zip"])
def test_a_truncated_archive_leaves_nothing(tmp_path: Path, mode: str) -> None:
    data = os.urandom(50_000)
    path = tmp_path / "cut"
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", data)
    else:
        write_tar(path, [(member("a"), data), (member("b"), data)], mode)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cannot be unpacked|is damaged") as error:
            unpack(path, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert list(everything(tmp_path)) == ["cut"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_a_damaged_archive_is_one_clear_line(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "damaged"
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", os.urandom(2_000))
    else:
        write_tar(path, [(member("a"), os.urandom(2_000))], mode)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            unpack(path, tmp_path / "out")
        except UserError:
            refused += 1
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert refused > (3 if mode == "w" else 30)  # a plain tar has sums over its headers only


def test_an_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terabyte of zeros is a megabyte of archive; the disk would be full before anyone looks."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage._replace(free=15_000))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10_000))
        archive.writestr("b", bytes(10_000))
    tar = write_tar(tmp_path / "bomb.tgz", [(member("a"), bytes(10_000)), (member("b"), bytes(10_000))], "w:gz")
    for path in (tmp_path / "bomb.zip", tar):
        with pytest.raises(UserError, match="at 'b' it needs more room"):
            unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_one_name_for_a_file_and_a_folder(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "clash.tar", [(member("a"), b"1"), (member("a/b"), b"2")])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(member("a"), b"1")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match="is there already"):
        unpack(path, tmp_path / "out")
    with pytest.raises(UserError, match=r"nowhere\.tar does not exist"):
        unpack(tmp_path / "nowhere.tar", tmp_path / "new")
    assert (tmp_path / "out" / "mine").read_text() == "x"


@pytest.mark.parametrize(
    ("bound", "value", "message"),
    [("MAX_FILES", 2, "it has more than 2 members"), ("SMALL", 5_000, "unpacked to more than 2 times its size")],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bound: str, value: int, message: str
) -> None:
    """Guards the disk: a few kB can unpack to all the room or all the file names that it has."""
    monkeypatch.setattr(archives, "MAX_RATIO", 2)
    monkeypatch.setattr(archives, bound, value)
    path = tmp_path / "bomb"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(3):
                archive.writestr(f"{number}", bytes(10_000))
    else:
        write_tar(path, [(member(f"{number}"), bytes(10_000)) for number in range(3)], "w:gz")
    with pytest.raises(UserError, match=message):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
