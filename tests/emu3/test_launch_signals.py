"""Ranks and signals: what reaches them, what is said of them, and that they end with their launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

MODULE = """
import os, signal, sys, time
from pathlib import Path
from emu3.errors import run_main

folder, what = Path(sys.argv[1]), sys.argv[2]
rank = os.environ["RANK"]

def main() -> None:
    if what == "save":  # as a trainer does, which takes a while
        came = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, lambda number, _: came.append(number))
    (folder / f"pid-{rank}.part").write_text(str(os.getpid()))
    os.replace(folder / f"pid-{rank}.part", folder / f"pid-{rank}")
    if what == "save":
        while not came:
            time.sleep(0.02)
        time.sleep(0.5)
        (folder / f"saved-{rank}").write_text(str(came))
        sys.exit(128 + came[0])
    if what == "die" and rank == "1":
        while not (folder / "pid-0").exists():  # or the launcher ends it before it is there
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGSEGV if len(sys.argv) > 3 else signal.SIGKILL)
    time.sleep(600)

run_main(main)
"""


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Any]:
    """`launched(what)` starts two ranks and returns their launcher once both are there."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "rank_module.py").write_text(MODULE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}

    def start(*what: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "emu3.launch", "--ranks", "2", "rank_module", str(tmp_path), *what]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        until(lambda: len(list(tmp_path.glob("pid-?"))) == 2)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(there: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(folder: Path) -> list[int]:
    found = []
    for file in folder.glob("pid-?"):
        with suppress(FileNotFoundError):
            status = Path(f"/proc/{file.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
            found += [int(file.read_text())] * (status != "Z")
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_ranks_get_the_signal_and_the_time_to_save(launched: Any, tmp_path: Path, number: int) -> None:
    """torchrun ends ranks for SIGUSR1 at once and kills them 30 s after a SIGTERM: 119 GB are not written by then."""
    launcher = launched("save")
    launcher.send_signal(number)
    assert launcher.wait(60) == 128 + number
    assert sorted(file.name for file in tmp_path.glob("saved-?")) == ["saved-0", "saved-1"]
    assert launcher.stderr.read() == "" and not alive(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_ranks_that_save_nothing_end_with_the_same_code(launched: Any, tmp_path: Path, number: int) -> None:
    launcher = launched("sleep")
    launcher.send_signal(number)
    assert launcher.wait(60) == 128 + number
    assert not alive(tmp_path)


@pytest.mark.parametrize(("more", "name"), [([], "SIGKILL: often for want of main memory"), (["x"], "SIGSEGV")])
def test_a_rank_that_is_ended_by_a_signal_is_named(launched: Any, tmp_path: Path, more: list[str], name: str) -> None:
    """A rank that the kernel ended for its memory left an empty log and exit code 137."""
    launcher = launched("die", *more)
    code = launcher.wait(120)
    assert code == 128 + signal.Signals[name.partition(":")[0]]
    last = launcher.stderr.read().splitlines()[-1]
    pid = (tmp_path / "pid-1").read_text()
    assert last.startswith(f"error: rank 1, process {pid}, was ended by {name}")


def test_ranks_end_with_a_launcher_that_is_killed(launched: Any, tmp_path: Path) -> None:
    """They went on writing into the run's folder, and a restart made a second trainer there."""
    launcher = launched("sleep")
    launcher.kill()
    launcher.wait()
    until(lambda: not alive(tmp_path), 30)
