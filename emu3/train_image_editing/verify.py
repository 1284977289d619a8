"""Check tokenized datasets against their manifests: every byte of every shard, and the counts.

python -m emu3.train_image_editing.verify data/omniedit data/magic_brush
"""

from __future__ import annotations

from pathlib import Path

from emu3.errors import UserError, run_main
from emu3.flags import CommandParser
from emu3.train_image_editing.shards import MANIFEST, check_rows


def verify(folder: Path) -> str:
    """One line about a dataset that is whole. Raises UserError for one that is not."""
    rows = check_rows(folder)
    with_target = int((rows.sizes()[:, 2] > 0).sum())
    for key, found in (("rows", len(rows)), ("rows_with_target", with_target)):
        if rows.manifest.get(key) != found:
            raise UserError(f"{folder} has {found} {key}, {MANIFEST} says {rows.manifest.get(key)}: tokenize it again")
    shards = len(rows.manifest["shards"])
    return f"{folder}: {len(rows)} rows, {with_target} with a target, in {shards} shards, all as {MANIFEST} says"


def main() -> None:
    parser = CommandParser(description="Check tokenized datasets against their manifests.")
    parser.add_argument("folders", nargs="+", type=Path, help="written by prepare_data")
    for folder in parser.parse_args().folders:
        print(verify(folder), flush=True)


if __name__ == "__main__":
    run_main(main)
