"""Kills a run with a stub scorer again and again: `killed_training.py FOLDER CONFIG.json KILLS`.

The undisturbed run comes first, in this process. Every other one is a fork of it, which has all that a run imports:
only so are twenty of them a matter of seconds. A run that came to its end before its kill is followed by another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from stub_run import run_all

from rl.config import Config
from rl.config_file import build_config


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[3])
    config = build_config(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    run_all([_written(folder, config, "undisturbed")])
    generator = random.Random(0)
    runs = 0
    while kills:
        run = folder / f"killed-{runs}"
        child = _forked(_written(folder, config, run.name))
        before = _entries(run)
        while _entries(run) == before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills -= 1
        elif os.WEXITSTATUS(status):
            sys.exit(f"a run ended with {os.WEXITSTATUS(status)}")
        runs += (run / "final").exists()
    last = folder / f"killed-{runs}"
    _, status = os.waitpid(_forked(_written(folder, config, last.name)), 0)
    if status:
        sys.exit(f"the last run ended with {os.waitstatus_to_exitcode(status)}")


def _written(folder: Path, config: Config, name: str) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(config, run_name=name))), encoding="utf-8")
    return str(path)


def _entries(run: Path) -> int:
    """Grows as soon as a checkpoint begins to be written."""
    folder = run / "checkpoints"
    return len(list(folder.iterdir())) if folder.exists() else 0


def _forked(path: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run_all([path])
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
