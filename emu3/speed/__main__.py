"""`python -m emu3.speed`: the vision tokenizer and what surrounds it."""

from __future__ import annotations

import argparse
from pathlib import Path

from emu3.errors import run_main
from emu3.speed import pipeline, tokens, vision
from emu3.speed.measure import machine, record, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m emu3.speed", description="Measure the speed of the tokenizer.")
    parser.add_argument("--output", type=Path, default=Path("speed.json"), help="list to add to (default: speed.json)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each measurement (default: 3)")
    options = parser.parse_args()
    results = [
        *vision.operations(),
        *vision.quantizer_memory(),
        *tokens.codes_and_ids(10 * options.turns),
        *tokens.bytes_per_pair(),
        *pipeline.tokenise(options.turns),
        *vision.times(options.turns),
    ]
    record(results, options.output, machine())
    print(table(results))


if __name__ == "__main__":
    run_main(main)
