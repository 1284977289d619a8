"""From pixels back to a scene: the eye of the verifier.

Every pixel takes the nearest colour of the palette; the background is what covers most of the slots' borders; a slot
holds the shape whose stencil overlaps its coloured pixels best. What the reading cannot explain (pixels that differ
from the redrawn scene) is kept: it is what a judge of image quality looks at.

Who knows that an image may be dark or out of focus can have it read through that flaw: it is undone to several degrees,
and the reading holds whose scene, with the flaw put back, looks most like the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product

import numpy as np
from PIL import Image

from shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    FLAW_DARKNESS,
    FLAW_NOISE,
    FORMS,
    HEIGHT,
    NOISE,
    ROWS,
    SIZES,
    SLOTS,
    TILE,
    WIDTH,
    Scene,
    Shape,
    draw,
    loss,
    stencil,
)

_TONES = list(BACKGROUNDS)
_PALETTE_NAMES = [*_TONES, *COLOURS]
_PALETTE = np.array([*BACKGROUNDS.values(), *COLOURS.values()], np.float32)
LEAST_PIXELS = 16  # fewer coloured pixels in a slot are specks, not a shape
CLOSE = 60.0  # distance in RGB up to which a pixel counts as drawn right


@dataclass(frozen=True)
class Reading:
    """What an image shows.

    overlap: intersection over union of each shape found with its stencil, 0 to 1, keyed by slot.
    wrong: share of the pixels that are further than `CLOSE` from the redrawn scene, 0 to 1.
    """

    scene: Scene
    overlap: dict[int, float]
    wrong: float


def read(image: Image.Image, flaw: str = "") -> Reading:
    """Read an image of any size (it is brought to 48x32 first). flaw: what to read it through; the scene then has this
    flaw, with the strength that is found, 0 for a clean image."""
    return _read(_scaled(image).tobytes(), flaw)


def _scaled(image: Image.Image) -> Image.Image:
    if image.size != (WIDTH, HEIGHT):
        image = image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    return image.convert("RGB")


def has_flaw(image: Image.Image, flaw: str) -> bool:
    """Whether an image has the flaw at half its strength or more, beside the scene that is read from it as it is."""
    return _strength(np.asarray(_scaled(image), np.float32), read(image).scene, flaw) >= 0.5


@lru_cache(maxsize=1024)
def _read(data: bytes, flaw: str) -> Reading:
    """A judge sees the same source with eight edits of it, and every edit twice."""
    pixels = np.frombuffer(data, np.uint8).reshape(HEIGHT, WIDTH, 3).astype(np.float32)
    if not flaw:
        return _seen(pixels)
    reading = min(map(_seen, _undone(pixels, flaw)), key=lambda reading: _misfit(pixels, reading.scene, flaw))
    strength = _strength(pixels, reading.scene, flaw)
    return replace(reading, scene=replace(reading.scene, flaw=flaw, strength=strength))


def _undone(pixels: np.ndarray, flaw: str) -> Iterator[np.ndarray]:
    """The image without the flaw, if it has it to one degree or another."""
    if flaw == "noise":
        yield pixels
        return
    for strength in np.linspace(0, 1, 11, dtype=np.float32):
        if flaw == "darkness":
            yield np.minimum(pixels / (1 - FLAW_DARKNESS * strength), 255)
        else:
            yield np.clip(pixels + 8 * strength * loss(pixels, flaw), 0, 255)


def _strength(pixels: np.ndarray, scene: Scene, flaw: str) -> float:
    """How strong a flaw is in an image of this scene, 0 to 1. Noise by the median of the deviations, which a few wrong
    places do not move; the others by least squares."""
    clean = draw(scene).astype(np.float32)
    if flaw == "noise":
        deviation = 1.4826 * float(np.median(abs(pixels - clean)))  # the standard one, if they are normal
        strength = (deviation / NOISE - 1) / FLAW_NOISE
    else:
        lost = loss(clean, flaw)
        strength = float(((clean - pixels) * lost).sum() / ((lost**2).sum() + 1e-9))
    return min(1.0, max(0.0, strength))


def _misfit(pixels: np.ndarray, scene: Scene, flaw: str) -> float:
    """Mean square of what the scene with its flaw leaves of an image, in squared 8-bit steps."""
    clean = draw(scene).astype(np.float32)
    lost = 0 if flaw == "noise" else _strength(pixels, scene, flaw) * loss(clean, flaw)
    return float(((clean - lost - pixels) ** 2).mean())


def _seen(pixels: np.ndarray) -> Reading:
    """Read float pixels (32, 48, 3)."""
    # Squared distance to each colour less the pixel's own square, which all colours share.
    nearest = ((_PALETTE**2).sum(1) - 2 * pixels @ _PALETTE.T).argmin(-1)
    tiles = nearest.reshape(ROWS, TILE, COLUMNS, TILE).swapaxes(1, 2).reshape(SLOTS, TILE * TILE)
    tone = int(np.bincount(tiles[:, _border()].ravel(), minlength=len(_PALETTE))[: len(_TONES)].argmax())
    slots, overlap = [], {}
    for slot, tile in enumerate(tiles):
        found = _shape(tile)
        slots.append(found[0] if found else None)
        if found:
            overlap[slot] = found[1]
    scene = Scene(_TONES[tone], tuple(slots))
    off = np.sqrt(((pixels - draw(scene)) ** 2).sum(-1)) > CLOSE
    return Reading(scene, overlap, float(off.mean()))


def _shape(tile: np.ndarray) -> tuple[Shape, float] | None:
    """The shape in a slot of palette numbers (256,) and its overlap, or None for an empty one."""
    coloured = tile >= len(_TONES)
    if coloured.sum() < LEAST_PIXELS:
        return None
    colour = int(np.bincount(tile[coloured], minlength=len(_PALETTE)).argmax())
    covered = (tile == colour).astype(np.float32)
    masks, areas, kinds = _stencils()
    together = masks @ covered
    overlap = together / (areas + covered.sum() - together)
    best = int(overlap.argmax())
    form, size = kinds[best]
    return Shape(_PALETTE_NAMES[colour], form, size), float(overlap[best])


@cache
def _stencils() -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """All stencils as rows (6, 256), their areas (6,), and what each one is."""
    kinds = list(product(FORMS, SIZES))
    masks = np.stack([stencil(*kind).ravel() for kind in kinds]).astype(np.float32)
    return masks, masks.sum(1), kinds


@cache
def _border() -> np.ndarray:
    """Indices of a slot's outermost pixels, which no stencil covers."""
    rows, columns = np.mgrid[:TILE, :TILE]
    edge = (rows == 0) | (rows == TILE - 1) | (columns == 0) | (columns == TILE - 1)
    return np.flatnonzero(edge.ravel())
