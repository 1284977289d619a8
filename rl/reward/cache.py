"""What is kept by its content: images as a judge gets them, and the replies that it gave.

An image is known by its pixels, so that equal images from different places are one: the source of a group of rollouts
is in all of its questions, an edited image in two, and each is encoded once. The key of a reply covers everything that
the reply depends on (see `Judge.ask`), so a key is never asked twice and an entry never goes stale.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import logging
import os
from collections import OrderedDict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from PIL import Image

from emu3.errors import UserError
from emu3.run_folder import check_version
from emu3.tokenizer.images import read_image
from rl.reward.config import ImageFormat
from rl.reward.scores import without_surrogates

VERSION = 2
"""Of the file of replies, in each of its lines; 1 had none."""

_log = logging.getLogger(__name__)

# JPEG 75 is what the published runs sent; it adds artefacts of its own, hence PNG by default. A higher PNG level
# costs more time than the bytes that it saves.
_SAVE_OPTIONS = {"png": {"compress_level": 1}, "jpeg": {"quality": 75}}


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels, as 64 hex digits."""
    return hashlib.sha256(b"%dx%d:" % image.size + image.tobytes()).hexdigest()


class ImageEncoder:
    """Data URLs of images, the last `keep` of them remembered by their digest."""

    def __init__(self, image_format: ImageFormat = "png", keep: int = 128) -> None:
        self.image_format = image_format
        self._keep = keep
        self._urls: OrderedDict[str, str] = OrderedDict()

    def data_url(self, image: Image.Image, digest: str) -> str:
        """`image`, RGB and with pixel digest `digest`, as a `data:` URL."""
        url = self._urls.get(digest)
        if url is None:
            file = io.BytesIO()
            image.save(file, self.image_format, **_SAVE_OPTIONS[self.image_format])
            url = f"data:image/{self.image_format};base64,{base64.b64encode(file.getvalue()).decode()}"
            self._urls[digest] = url
            if len(self._urls) > self._keep:
                self._urls.popitem(last=False)
        else:
            self._urls.move_to_end(digest)
        return url


def image_of(url: str) -> Image.Image:
    """The image in a `data:` URL, as RGB: what a judge makes of `ImageEncoder.data_url`. Raises ValueError with one
    line if there is none."""
    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError("images must be base64 data URLs")
    try:
        return read_image(io.BytesIO(base64.b64decode(data, validate=True)), "the image")
    except (ValueError, UserError) as error:
        raise ValueError(f"unreadable image: {error}") from None


class ReplyCache(AbstractContextManager["ReplyCache"]):
    """Replies by key, in memory and, if wanted, in a JSON-lines file, which one process writes.

    Each reply is appended by a single write as it arrives; a line that a crash cut short is removed when the file is
    opened next, and asked for again. What cannot be written, on a full disk or in a folder that may only be read, is
    kept in memory and written as soon as there is room; one warning says so.

    path: file to read and continue, made at the first new reply; None keeps them in memory only.
    keep: this many replies at most stay in memory, the newest; the file keeps all.
    Raises `UserError` if the file holds something else, or cannot be read.
    """

    def __init__(self, path: Path | None = None, keep: int = 100_000) -> None:
        self._keep = keep
        self._path = path
        self._replies: dict[str, str] = {}
        self._served: dict[str, str] = {}
        self._unwritten: list[bytes] = []
        self._warned = False
        if path is not None and path.is_file():
            try:
                with path.open("rb") as file:
                    whole = self._load(path, file)
            except OSError as error:
                raise UserError(f"the judge's replies in {path} cannot be read: {error.strerror}") from None
            try:
                if whole < path.stat().st_size:
                    os.truncate(path, whole)
            except OSError as error:
                self._warn(path, error)
                self._path = None  # a line that is appended there would be glued to the stump

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> str | None:
        return self._replies.get(key)

    def served(self, key: str) -> str | None:
        """What the server of a reply calls its model, where that is another name than it was asked by."""
        return self._served.get(key)

    def put(self, key: str, reply: str, served: str | None = None) -> None:
        self._remember(key, reply, served)
        if self._path is not None:
            entry = {"version": VERSION, "key": key, "answer": reply, **({"served": served} if served else {})}
            self._unwritten.append(json.dumps(entry).encode() + b"\n")
            self._write(self._path)

    def close(self) -> None:
        if self._path is not None and self._unwritten:
            self._write(self._path)

    def __exit__(self, *error: object) -> None:
        self.close()

    def _remember(self, key: str, reply: str, served: str | None) -> None:
        self._replies[key] = reply
        if served:
            self._served[key] = served
        if len(self._replies) > self._keep:
            oldest = next(iter(self._replies))
            del self._replies[oldest]
            self._served.pop(oldest, None)

    def _write(self, path: Path) -> None:
        """Append what is not written, all of it or nothing."""
        data = b"".join(self._unwritten)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                start = file.tell()
                if file.write(data) != len(data):  # the disk is full
                    file.truncate(start)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._warn(path, error)
            del self._unwritten[: -self._keep]
        else:
            self._unwritten.clear()

    def _warn(self, path: Path, error: OSError) -> None:
        if not self._warned:
            _log.warning("the judge's replies are kept in memory, %s cannot be written: %s", path, error.strerror)
            self._warned = True

    def _load(self, path: Path, file: IO[bytes]) -> int:
        """Read the whole lines of the file; returns their bytes."""
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                entry = json.loads(line)
                check_version(path, entry if isinstance(entry, dict) else {}, VERSION)
                served = entry.get("served")
                served = without_surrogates(served) if served is not None else None
                self._remember(entry["key"] + "", without_surrogates(entry["answer"]), served)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise UserError(
                    f"{path}, line {number}: not a reply of a judge; remove the line or name another cache file"
                ) from None
        return whole
