"""What is kept by its content: images as a judge gets them, and the replies that it gave.

An image is known by its pixels, so that equal images from different places are one: the source of a group of rollouts
is in all of its questions, an edited image in two, and each is encoded once. The key of a reply covers everything that
the reply depends on (see `Judge.ask`), so a key is never asked twice and an entry never goes stale.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import OrderedDict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from PIL import Image

from emu3.errors import UserError
from rl.reward.config import ImageFormat

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
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable image: {error}") from None


class ReplyCache(AbstractContextManager["ReplyCache"]):
    """Replies by key, in memory and, if wanted, in a JSON-lines file, which one process writes.

    Each reply is appended by a single write as it arrives; a line that a crash cut short is removed when the file is
    opened next, and asked for again.

    path: file to read and continue, made at the first new reply; None keeps them in memory only.
    keep: this many replies at most stay in memory, the newest; the file keeps all.
    Raises `UserError` if the file holds something else.
    """

    def __init__(self, path: Path | None = None, keep: int = 100_000) -> None:
        self._keep = keep
        self._path = path
        self._replies: dict[str, str] = {}
        self._file: IO[bytes] | None = None
        if path is not None and path.is_file():
            self._file = path.open("a+b", buffering=0)
            self._load(path, self._file)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> str | None:
        return self._replies.get(key)

    def put(self, key: str, reply: str) -> None:
        self._remember(key, reply)
        if self._path is not None:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
            self._file.write(json.dumps({"key": key, "answer": reply}).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __exit__(self, *error: object) -> None:
        self.close()

    def _remember(self, key: str, reply: str) -> None:
        self._replies[key] = reply
        if len(self._replies) > self._keep:
            del self._replies[next(iter(self._replies))]

    def _load(self, path: Path, file: IO[bytes]) -> None:
        file.seek(0)
        whole = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
            try:
                entry = json.loads(line)
                self._remember(entry["key"], entry["answer"])
            except (ValueError, KeyError, TypeError):
                self.close()
                raise UserError(
                    f"{path}, line {number}: not a reply of a judge; remove the line or name another cache file"
                ) from None
