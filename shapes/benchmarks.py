"""Six benchmarks of the embedded world, as Parquet files of image rows. They mirror the paper's in kind.

    python -m shapes.benchmarks --output runs/benchmarks
    python -m shapes.benchmarks --output runs/dev --dev      other rows of the same kinds, to choose settings on

    simple         OmniEdit     simple edits as in training, with up to two things more in a scene
    reworded       EmuEdit      simple edits in wordings and among more things than in training
    actions        AURORA       a thing comes, goes or moves; two or three edits in one instruction
    crowded        MagicBrush   edits among four to six things, some in people's words
    counting       VisMin       how many things there are and which stands where, beside one thing's minimal changes
    restoration    I2EBench     noise, blur and darkness to be removed, beside other edits

The columns are those of `shapes.write_data`, whose words (colours, forms, tones) all instructions use. The verifier
judges every row by words and pixels alone. Each row has its own random stream. What SFT (S) scores on them, which was
to leave room, is in docs/study.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emu3.errors import run_main
from emu3.files import whole_file
from emu3.flags import CommandParser
from emu3.settings import COUNT, SEED
from shapes.edits import SIMPLE, SceneEdit, in_peoples_words
from shapes.edits.complex import Both, Count, Move
from shapes.edits.other import Beside, Restore, Shift, Steps
from shapes.edits.simple import Add, Recolour, Remove, Reshape
from shapes.scene import grain, random_scene
from shapes.write_data import SCHEMA, edit_row


@dataclass(frozen=True)
class Benchmark:
    """kinds: of edits, equally frequent. things: fewest and most in a scene. reworded, by_people: shares of the
    instructions in other wordings, and with a courtesy before them."""

    kinds: tuple[type[SceneEdit], ...]
    things: tuple[int, int] = (2, 3)
    reworded: float = 0.0
    by_people: float = 0.0


BENCHMARKS = {
    "simple": Benchmark(SIMPLE, (2, 5)),
    "reworded": Benchmark(SIMPLE, (3, 4), reworded=1.0),
    "actions": Benchmark((Add, Remove, Shift, Both, Steps)),
    "crowded": Benchmark((Recolour, Reshape, Remove, Add, Move), (4, 6), reworded=0.25, by_people=0.3),
    "counting": Benchmark((Add, Recolour, Count, Move, Beside)),
    "restoration": Benchmark((Restore, Restore, Restore, Recolour, Remove, Count)),
}


def make_row(name: str, seed: int, dev: bool, number: int) -> dict[str, Any]:
    """Row `number` of the benchmark `name`; dev: of the rows for development, which are others."""
    benchmark = BENCHMARKS[name]
    stream = f"{name}_dev" if dev else name
    rng = np.random.default_rng([seed, *b"benchmark", *stream.encode(), number])
    kind = benchmark.kinds[rng.integers(len(benchmark.kinds))]
    while (edit := kind.choose(scene := random_scene(rng, benchmark.things), rng)) is None:
        pass
    instruction = edit.worded(rng, other=rng.random() < benchmark.reworded)
    if rng.random() < benchmark.by_people:
        instruction = in_peoples_words(instruction, rng)
    before = edit.source(scene, rng)
    after = edit.apply(before, rng)
    row = edit_row(f"{stream}_{number}", edit, instruction, before, after, after, grain(rng))
    return {**row, "task": edit.flaw} if isinstance(edit, Restore) else row


def write(folder: Path, names: list[str], rows: int, seed: int, dev: bool = False) -> None:
    """Write `NAME.parquet` for each name into `folder`, each whole or not at all."""
    for name in names:
        table = pa.Table.from_pylist(list(map(partial(make_row, name, seed, dev), range(rows))), schema=SCHEMA)
        with whole_file(folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary)


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--rows", type=COUNT, default=200, help="rows of each benchmark (default 200)")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--dev", action="store_true", help="rows for development, none of which is in the others")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="some of the benchmarks"
    )
    options = parser.parse_args()
    write(options.output, options.only, options.rows, options.seed, options.dev)


if __name__ == "__main__":
    run_main(main)
