"""`python -m dev.speed`: the vision tokenizer and what surrounds it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dev.speed import data, vision
from dev.speed.measure import machine, record, table
from emu3.errors import run_main


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.speed", description="Measure the speed of the tokenizer.")
    parser.add_argument("--output", type=Path, default=Path("speed.json"), help="list to add to (default: speed.json)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each measurement (default: 3)")
    options = parser.parse_args()
    results = [
        *vision.operations(),
        *vision.quantizer_memory(),
        *data.codes_and_ids(10 * options.turns),
        *data.bytes_per_pair(),
        *data.rows_memory(),
        *data.tokenize(options.turns),
        *vision.times(options.turns),
    ]
    record(results, options.output, machine())
    print(table(results))


if __name__ == "__main__":
    run_main(main)
