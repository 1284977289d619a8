"""One size for all pictures of a sample: what the judge sees, whoever edited.

The source is brought to the image area and cropped to whole cells of the image tokenizer, as our own models' pictures
are. An editor that works at the data set's size, or near it, gets its picture resized once, to where the source went.
"""

from __future__ import annotations

from PIL import Image

from emu3.tokenizer.images import fit_image, scale_image

FACTOR = 8
"""Sides of a shown picture are multiples of this, whoever edits: every row of a table sees the same sources."""

PATCH = 16
"""Editors that work in patches round the sides of a picture by up to this many pixels; that is no other frame."""


class Frame:
    """Where a source of any size goes at `image_area` pixels. `shown` is the source there, RGB.

    Raises `UserError` for a source so thin that a side would be shorter than `FACTOR`.
    """

    def __init__(self, source: Image.Image, image_area: int) -> None:
        scaled = scale_image(source, image_area, FACTOR)
        self._area = image_area
        self._native, self._scaled = source.size, scaled.size
        self._box = (0, 0, scaled.width - scaled.width % FACTOR, scaled.height - scaled.height % FACTOR)
        self.shown = scaled.crop(self._box)

    def holds(self, size: tuple[int, int]) -> bool:
        """Whether a picture of that width and height shows the frame of the source, up to rounding by `PATCH`."""
        (width, height), (native_width, native_height) = size, self._native
        return (
            abs(width - height * native_width / native_height) < PATCH
            or abs(height - width * native_height / native_width) < PATCH
        )

    def fit(self, picture: Image.Image) -> Image.Image:
        """An edit of the source, RGB, at the size of `shown`; resized (bicubic) unless it has that size already."""
        picture = picture.convert("RGB")
        if picture.size == self.shown.size:
            return picture
        return picture.resize(self._scaled, Image.Resampling.BICUBIC).crop(self._box)

    def fit_mask(self, mask: Image.Image) -> Image.Image:
        """A mask of the source, of mode L, at the size of `shown`; a pixel is what it was nearest to."""
        return mask.resize(self._scaled, Image.Resampling.NEAREST).crop(self._box)

    def fit_target(self, target: Image.Image) -> Image.Image:
        """A target, which data sets may have at any shape: as an edit if it has the source's, else by itself."""
        return self.fit(target) if self.holds(target.size) else fit_image(target, self._area, FACTOR)
