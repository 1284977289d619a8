"""Scenes of the embedded world and how they are drawn.

An image is 48 pixels wide and 32 high: six slots of 16x16, each empty or holding one shape. A shape has a colour, a
form and a size; the background has one of three tones, and light noise lies over all. In a source scene no two shapes
share a colour (in a crowd of more than four, no colour and form), so "the red circle" always names one thing.

A scene can be photographed badly, for edits that restore it: with much noise, out of focus, or in the dark.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

ROWS, COLUMNS = 2, 3
TILE = 16
HEIGHT, WIDTH = ROWS * TILE, COLUMNS * TILE
SLOTS = ROWS * COLUMNS
NOISE = 2.0  # standard deviation in 8-bit steps

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (35, 160, 65),
    "blue": (40, 85, 220),
    "yellow": (240, 205, 45),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (240, 240, 236),
    "gray": (150, 150, 154),
    "black": (24, 24, 30),
}
FORMS = ("circle", "square", "triangle")
SIZES: dict[str, int] = {"large": 13, "small": 9}  # side in pixels
FLAWS = ("noise", "blur", "darkness")
FLAW_NOISE = 15.0  # at full strength, the grain's standard deviation grows by so many times itself
FLAW_BLUR = 5  # side of the box, in pixels, over which a full blur averages
FLAW_DARKNESS = 0.4  # share of the light that full darkness takes


@dataclass(frozen=True)
class Shape:
    """One thing in the middle of a slot."""

    colour: str
    form: str
    size: str = "large"

    @property
    def name(self) -> tuple[str, str]:
        """What an instruction calls it: (colour, form)."""
        return self.colour, self.form


@dataclass(frozen=True)
class Scene:
    """A background and six slots in row order. flaw: one of `FLAWS`, or empty; strength: of the flaw, 0 to 1."""

    background: str
    slots: tuple[Shape | None, ...]
    flaw: str = ""
    strength: float = 0.0

    def find(self, colour: str, form: str) -> int | None:
        """The first slot that holds a shape of this colour and form, or None."""
        return next((i for i, shape in enumerate(self.slots) if shape and shape.name == (colour, form)), None)

    def count(self, colour: str, form: str) -> int:
        return sum(shape is not None and shape.name == (colour, form) for shape in self.slots)

    def filled(self) -> list[int]:
        return [i for i, shape in enumerate(self.slots) if shape is not None]

    def free(self) -> list[int]:
        return [i for i, shape in enumerate(self.slots) if shape is None]

    def put(self, slot: int, shape: Shape | None) -> Scene:
        """This scene with `shape` (or nothing) in `slot`."""
        return replace(self, slots=(*self.slots[:slot], shape, *self.slots[slot + 1 :]))


def random_shape(rng: np.random.Generator, *, taken: set[tuple[str, str]], colours: list[str] | None = None) -> Shape:
    """A random shape whose (colour, form) is not in `taken`, of one of `colours` if these are given."""
    names = [(c, form) for c in colours or COLOURS for form in FORMS if (c, form) not in taken]
    colour, form = names[rng.integers(len(names))]
    return Shape(colour, form, str(rng.choice(list(SIZES))))


def random_scene(rng: np.random.Generator, shapes: tuple[int, int] = (2, 3)) -> Scene:
    """A scene of `shapes[0]` to `shapes[1]` things of different names, and of different colours while these last."""
    scene = Scene(str(rng.choice(list(BACKGROUNDS))), (None,) * SLOTS)
    taken: set[tuple[str, str]] = set()
    colours = rng.permutation(list(COLOURS)).tolist()
    for number, slot in enumerate(rng.permutation(SLOTS)[: rng.integers(shapes[0], shapes[1] + 1)]):
        shape = random_shape(rng, taken=taken, colours=colours[number : number + 1])
        taken.add(shape.name)
        scene = scene.put(int(slot), shape)
    return scene


@cache
def stencil(form: str, size: str) -> np.ndarray:
    """Boolean (16, 16) mask of the pixels that a shape covers in its slot."""
    side = SIZES[size]
    rows, columns = np.mgrid[:TILE, :TILE]
    y = rows - TILE / 2 + 0.5
    x = columns - TILE / 2 + 0.5
    half = side / 2
    if form == "circle":
        return x**2 + y**2 <= (half - 0.25) ** 2  # or a small one is a square without its corners
    if form == "square":
        return (abs(x) <= half - 0.5) & (abs(y) <= half - 0.5)
    return (abs(y) <= half) & (abs(x) <= (y + half) / 2 + 0.25)


def draw(scene: Scene) -> np.ndarray:
    """The scene without noise, uint8 (32, 48, 3)."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for slot in scene.filled():
        shape = scene.slots[slot]
        assert shape is not None
        top, left = slot // COLUMNS * TILE, slot % COLUMNS * TILE
        tile = image[top : top + TILE, left : left + TILE]
        tile[stencil(shape.form, shape.size)] = COLOURS[shape.colour]
    return image


def grain(rng: np.random.Generator) -> np.ndarray:
    """The light noise of one image, float (32, 48, 3) in 8-bit steps. An edit keeps it, as a retouched photograph
    keeps its grain."""
    return rng.normal(0.0, NOISE, (HEIGHT, WIDTH, 3))


def photograph(scene: Scene, noise: np.ndarray) -> np.ndarray:
    """The scene with its noise and its flaw, uint8 (32, 48, 3)."""
    image = draw(scene).astype(float)
    if scene.flaw == "noise":
        noise = noise * (1 + FLAW_NOISE * scene.strength)
    elif scene.flaw:
        image -= scene.strength * loss(image, scene.flaw)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def loss(image: np.ndarray, flaw: str) -> np.ndarray:
    """What full blur or darkness takes from an image, float (32, 48, 3) in 8-bit steps; both are linear."""
    if flaw == "darkness":
        return FLAW_DARKNESS * image
    padded = np.pad(image, ((FLAW_BLUR // 2,) * 2, (FLAW_BLUR // 2,) * 2, (0, 0)), mode="edge")
    rows = np.add.reduce([padded[start : start + HEIGHT] for start in range(FLAW_BLUR)])
    box = np.add.reduce([rows[:, start : start + WIDTH] for start in range(FLAW_BLUR)])
    return image - box / FLAW_BLUR**2
