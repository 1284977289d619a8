"""Pictures as a judge gets them: data URLs, each picture encoded once though it goes out several times.

The source of a group of rollouts is in all of its questions, an edited picture in two. Both are recognised by
their pixels, so that equal pictures from different places are one.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import OrderedDict
from typing import Literal

from PIL import Image

ImageFormat = Literal["png", "jpeg"]

# JPEG 75 is what the published runs sent; it adds artefacts of its own, hence PNG by default. A higher PNG level
# costs more time than the bytes that it saves.
_SAVE_OPTIONS = {"png": {"compress_level": 1}, "jpeg": {"quality": 75}}


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB picture's size and pixels, as 64 hex digits."""
    return hashlib.sha256(b"%dx%d:" % image.size + image.tobytes()).hexdigest()


class PictureEncoder:
    """Data URLs of pictures, the last `keep` of them remembered by their digest."""

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
