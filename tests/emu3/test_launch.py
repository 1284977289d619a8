"""Several processes as one command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RANK_MODULE = """
import os, sys, time
from emu3.errors import UserError, run_main

def main() -> None:
    rank, wanted = int(os.environ["RANK"]), sys.argv[1]
    if wanted in ("all", str(rank)):
        raise UserError("no such column")
    if wanted == "none":
        sys.stdout.write(f"rank {rank} of {os.environ['WORLD_SIZE']} got {sys.argv[2:]}\\n")  # one write, one line
    else:
        time.sleep(600)

run_main(main)
"""


def ranks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "rank_module.py").write_text(RANK_MODULE)
    command = [sys.executable, "-m", "emu3.launch", "--ranks", "2", "rank_module", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])])}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_each_rank_gets_the_arguments_as_they_are(tmp_path: Path) -> None:
    """Flags that the launcher knows as well belong to the module once its name is said."""
    ended = ranks(tmp_path, "none", "--ranks", "7", "key=a b")
    assert ended.returncode == 0, ended.stderr
    told = "got ['--ranks', '7', 'key=a b']"
    assert sorted(ended.stdout.splitlines()) == [f"rank {rank} of 2 {told}" for rank in (0, 1)]


@pytest.mark.parametrize(("who", "told"), [("all", "error: no such column"), ("1", "error (rank 1): no such column")])
def test_an_error_is_one_line_and_code_2(tmp_path: Path, who: str, told: str) -> None:
    """torchrun prints a table of tracebacks under it and ends with 1; and a rank that waits for the failed one would
    wait for ever."""
    ended = ranks(tmp_path, who)
    assert (ended.returncode, ended.stderr.splitlines()) == (2, [told])
