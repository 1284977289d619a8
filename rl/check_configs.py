"""Whether every config can start a run: it parses, has the right keys and types, and names what exists.

    python -m rl.check_configs [FILE ...]        default: all that rl/configs ships

Prints a table of the runs and ends with code 2 and a line per fault if there is any. Nothing is fetched and no judge is
asked: a model is checked for being a folder or spelled as a Hub id, a dataset for being a folder or one of the paper's.
Variables of the environment that are not set are stood in for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from emu3.errors import UserError, run_main
from emu3.flags import CommandParser
from emu3.hub import HUB_ID
from rl.config import Config
from rl.config_file import load_config, stand_in

CONFIGS = Path(__file__).parent / "configs"
# In APP__DATA_DIR, as mair-lab/earl-datasets has them.
PAPER_SETS = {
    f"{name}/train" for name in ("omniedit", "magic_brush", "aurora_ag", "aurora_kubric", "ss2", "vismin", "human-edit")
}
SHAPES_SETS = {"simple", "complex"}
COLUMNS: tuple[str, ...] = ("config", "base", "steps", "lr", "kl", "think", "judge", "data")


def check_config(path: Path) -> Config:
    """The config of a run. Raises UserError, in one line that names the file, if the run could not start.

    The variables of `rl.config_file.STAND_INS` have to be set.
    """
    try:
        config = load_config(path)
        for key, name in (("model", config.model), ("vision", config.vision), ("tokenizer", config.tokenizer)):
            if name is not None and not _is_model(name, config.output_dir):
                raise UserError(f"config key {key}: {name!r} is neither a folder nor spelled as a Hub id")
        for folder in config.data.sets:
            if _name_of_set(folder) not in PAPER_SETS | SHAPES_SETS and not Path(folder).is_dir():
                known = ", ".join(sorted(PAPER_SETS | SHAPES_SETS))
                raise UserError(f"config key data.sets: {folder} is neither a folder nor one of {known}")
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"config {path}: {error}") from None
    return config


def check_all(paths: Sequence[Path]) -> str:
    """A table with a line per run. Raises UserError with a line per file that has a fault."""
    rows = [COLUMNS]
    faults = []
    for path in paths:
        try:
            rows.append(_row(path.stem, check_config(path)))
        except UserError as error:
            faults.append(str(error))
    if faults:
        for fault in faults[:-1]:
            print(f"error: {fault}", file=sys.stderr)
        raise UserError(faults[-1])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _row(name: str, config: Config) -> tuple[str, ...]:
    sets = [_name_of_set(folder).removesuffix("/train") for folder in config.data.sets]
    if config.data.coefficients is not None:
        sets = [f"{share:g}*{part}" for share, part in zip(config.data.coefficients, sets, strict=True)]
    return (
        name,
        config.model,
        str(config.steps),
        f"{config.optimizer.lr:g}",
        f"{config.objective.kl:g}",
        str(config.rollout.think_tokens or "-"),
        config.judge.model or "any",
        " ".join(sets),
    )


def _is_model(name: str, output_dir: str) -> bool:
    """An earlier stage of the same output folder may have yet to make it."""
    return Path(name).is_dir() or Path(name).is_relative_to(output_dir) or HUB_ID.fullmatch(name) is not None


def _name_of_set(folder: str) -> str:
    return folder.removeprefix(os.environ["APP__DATA_DIR"]).strip("/")


def main() -> None:
    parser = CommandParser(description="Check the configs of RL runs.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="jsonnet files; default: rl/configs")
    arguments = parser.parse_args()
    stand_in()
    print(check_all(arguments.files or sorted(CONFIGS.glob("*.jsonnet"))))


if __name__ == "__main__":
    run_main(main)
