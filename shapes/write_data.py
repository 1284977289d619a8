"""Write the data of the embedded world as ordinary Parquet files of image rows.

    python -m shapes.write_data --output-dir data

    simple.parquet           simple edits, clean targets, many
    complex.parquet          complex edits, scarce, with nuisance changes in their targets
    complex_clean.parquet    the same rows with clean targets (for the control)
    held_out.parquet         simple and complex edits with clean targets, of scenes of their own
    pictures.parquet         crowded scenes without edits, for the tokenizer (column input only)

Columns: id, input, output (PNG), instruction, task, split (simple or complex), reasoning_verbose. Each row has its
own random stream, so the first thousand rows of a set do not depend on how many follow.

In the paper's complex sets (video frames, simulator pairs) the second image differs from the first in things nobody
asked for. Here a target of `complex` gets, with probability `--nuisance-share`, `--nuisance-strength` unrelated
changes: something that the instruction does not name moves, changes its colour or disappears, or comes into a scene
that has nothing of the kind. What was asked for stays done; a strict judge scores it lower for overediting.

The paper's simple sets have restorations among their edits. With `--restoration`, so do that share of `simple`, and the
same share of `pictures` is noisy, blurred or dark; the held-out rows stay as they are (`shapes.benchmarks` has these).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from emu3.errors import UserError, run_main
from emu3.files import whole_file
from emu3.flags import CommandParser
from emu3.settings import COUNT, SEED, number_in
from emu3.train_image_editing.image_rows import IMAGE_CELL
from shapes.edits import COMPLEX, SIMPLE, SceneEdit, random_edit
from shapes.edits.other import Restore
from shapes.scene import COLOURS, COLUMNS, TILE, Scene, Shape, grain, photograph, random_scene, random_shape

_CROWD = (3, 6)  # shapes in a scene for the tokenizer: with few, most cells are bare and their codes take over
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input", IMAGE_CELL),
        ("output", IMAGE_CELL),
        ("instruction", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("reasoning_verbose", pa.string()),
    ]
)


@dataclass(frozen=True)
class DataSpec:
    """Sizes in rows. nuisance_share: probability that a complex target holds unrelated changes, 0 to 1;
    nuisance_strength: how many of them. restoration: share of simple edits that restore a bad photograph, 0 to 1."""

    simple: int = 24_000
    complex: int = 1_000
    held_out: int = 500
    pictures: int = 3_000
    nuisance_share: float = 0.7
    nuisance_strength: int = 1
    restoration: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.nuisance_share <= 1:
            raise UserError(f"--nuisance-share is {self.nuisance_share}; it is a probability from 0 to 1")
        if not 0 <= self.restoration <= 1:
            raise UserError(f"--restoration is {self.restoration}; it is a share from 0 to 1")
        if min(self.simple, self.complex, self.held_out, self.pictures) < 1 or self.nuisance_strength < 0:
            raise UserError("sizes must be at least 1 row and --nuisance-strength at least 0")


def write(spec: DataSpec, folder: Path, workers: int = 2) -> None:
    """Write the five files into `folder`, each whole or not at all."""
    with ProcessPoolExecutor(workers) as pool:

        def save(name: str, *parts: tuple[Callable[[int], dict[str, Any]], int], schema: pa.Schema = SCHEMA) -> None:
            rows = [row for make, count in parts for row in pool.map(make, range(count), chunksize=250)]
            with whole_file(folder / f"{name}.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)

        save("simple", (partial(_row, spec.seed, "simple", SIMPLE, 0.0, 0, restoration=spec.restoration), spec.simple))
        noisy = partial(_row, spec.seed, "complex", COMPLEX, spec.nuisance_share, spec.nuisance_strength)
        save("complex", (noisy, spec.complex))
        save("complex_clean", (partial(_row, spec.seed, "complex", COMPLEX, 0.0, 0), spec.complex))
        save(
            "held_out",
            (partial(_row, spec.seed, "held_out_simple", SIMPLE, 0.0, 0), spec.held_out),
            (partial(_row, spec.seed, "held_out_complex", COMPLEX, 0.0, 0), spec.held_out),
        )
        save(
            "pictures",
            (partial(_image_row, spec.seed, spec.restoration), spec.pictures),
            schema=pa.schema([("input", IMAGE_CELL)]),
        )


def _row(
    seed: int,
    stream: str,
    kinds: tuple[type[SceneEdit], ...],
    nuisance_share: float,
    nuisance_strength: int,
    number: int,
    restoration: float = 0.0,
) -> dict[str, Any]:
    rng = np.random.default_rng([seed, *stream.encode(), number])
    scene = random_scene(rng)
    if restoration and rng.random() < restoration:
        kinds = (Restore,)
    edit = random_edit(kinds, scene, rng)
    instruction = edit.worded(rng)
    before = edit.source(scene, rng)
    after = edit.apply(before, rng)
    noise = grain(rng)
    target = disturb(edit, before, after, rng, nuisance_strength) if rng.random() < nuisance_share else after
    return edit_row(f"{stream}_{number}", edit, instruction, before, after, target, noise)


def edit_row(
    name: str, edit: SceneEdit, instruction: str, before: Scene, after: Scene, target: Scene, noise: np.ndarray
) -> dict[str, Any]:
    """A row of the data. target: what the output shows; after: what it was to show. noise: of both images."""
    return {
        "id": name,
        "input": _png(photograph(before, noise)),
        "output": _png(photograph(target, noise)),
        "instruction": instruction,
        "task": edit.kind,
        "split": "complex" if edit.complex else "simple",
        "reasoning_verbose": reasoning(edit, instruction, before, after),
    }


def _image_row(seed: int, restoration: float, number: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, *b"pictures", number])
    scene, noise = random_scene(rng, _CROWD), grain(rng)
    if restoration and rng.random() < restoration:
        scene = random_edit((Restore,), scene, rng).source(scene, rng)
    return {"input": _png(photograph(scene, noise))}


def _png(image: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


def disturb(edit: SceneEdit, before: Scene, after: Scene, rng: np.random.Generator, strength: int) -> Scene:
    """`after` with `strength` unrelated changes; fewer only where the scene has no room left."""
    names, touched = edit.names(), edit.touched(before, after)
    shapes = enumerate(after.slots)
    bystanders = [slot for slot, shape in shapes if shape and shape.name not in names and slot not in touched]
    for slot in rng.permutation(bystanders)[:strength]:
        after = _change(after, int(slot), names, touched, rng)
    room = [slot for slot in after.free() if slot not in touched]
    for slot in rng.permutation(room)[: max(0, strength - len(bystanders))]:
        present = {shape.name for shape in after.slots if shape}
        after = after.put(int(slot), random_shape(rng, taken=names | present))
    return after


def _change(scene: Scene, slot: int, names: set[tuple[str, str]], touched: set[int], rng: np.random.Generator) -> Scene:
    """Change the shape in `slot`; it neither takes one of `names` nor moves to one of the `touched` slots."""
    shape = scene.slots[slot]
    assert shape is not None
    what = rng.integers(3)
    places = [place for place in scene.free() if place not in touched]
    if what == 0 and places:
        return scene.put(slot, None).put(int(rng.choice(places)), shape)
    if what == 1:
        others = [colour for colour in COLOURS if colour != shape.colour and (colour, shape.form) not in names]
        return scene.put(slot, replace(shape, colour=str(rng.choice(others))))
    return scene.put(slot, None)


def reasoning(edit: SceneEdit, instruction: str, before: Scene, after: Scene) -> str:
    """A chain of thought in the five steps of the paper's chains (Section 4.1): what is there, what to edit, where, the
    change, and the result. Boxes are x0, y0, x1, y1 in pixels."""
    slots = sorted(edit.touched(before, after))
    objects = [shape for slot in slots if (shape := before.slots[slot])]
    boxes = ", ".join(_box(slot) for slot in slots) or "the whole picture"
    return (
        f"1. {_describe(before)} 2. Edit {_list(objects) if objects else 'the scene'}. 3. At {boxes}. "
        f"4. {instruction.capitalize()}. 5. {_describe(after)}"
    )


def _describe(scene: Scene) -> str:
    return f"{_list([shape for shape in scene.slots if shape])} on {scene.background}."


def _list(shapes: list[Shape]) -> str:
    return ", ".join(f"{shape.size} {shape.colour} {shape.form}" for shape in shapes) or "nothing"


def _box(slot: int) -> str:
    top, left = slot // COLUMNS * TILE, slot % COLUMNS * TILE
    return f"[{left}, {top}, {left + TILE}, {top + TILE}]"


def main() -> None:
    default = DataSpec()
    parser = CommandParser(old={"--output-dir": "--output"}, description=__doc__)
    parser.add_argument("--output", dest="output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--simple", type=COUNT, default=default.simple, help=f"rows (default {default.simple})")
    parser.add_argument("--complex", type=COUNT, default=default.complex, help=f"rows (default {default.complex})")
    parser.add_argument(
        "--held-out", type=COUNT, default=default.held_out, help=f"rows of each split (default {default.held_out})"
    )
    parser.add_argument("--pictures", type=COUNT, default=default.pictures, help=f"rows (default {default.pictures})")
    parser.add_argument(
        "--nuisance-share",
        type=number_in(float, least=0, most=1),
        default=default.nuisance_share,
        help=f"share of complex targets with unrelated changes (default {default.nuisance_share})",
    )
    parser.add_argument(
        "--nuisance-strength",
        type=number_in(int, least=0, most=1000),
        default=default.nuisance_strength,
        help=f"unrelated changes in each of them (default {default.nuisance_strength})",
    )
    parser.add_argument(
        "--restoration",
        type=number_in(float, least=0, most=1),
        default=default.restoration,
        help=f"share of simple edits that restore a bad photograph (default {default.restoration})",
    )
    parser.add_argument("--seed", type=SEED, default=default.seed)
    options = vars(parser.parse_args())
    folder = options.pop("output_dir")
    write(DataSpec(**options), folder)


if __name__ == "__main__":
    run_main(main)
