"""Signals are noted once, and twice is meant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from emu3.errors import SIGNALS
from emu3.training import ranks as module
from emu3.training.ranks import stopping


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_process_goes_on(number: int) -> None:
    """Guards minutes of a step, and the state since the last checkpoint, lost to a scheduler."""
    before = signal.getsignal(number)
    with stopping() as stop:
        assert stop.agreed() == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the same request, by the launcher and by the scheduler
        assert stop.agreed() == number
    assert signal.getsignal(number) == before


def test_what_was_to_be_ignored_is_ignored() -> None:
    """Ctrl-C at a script ended the run in its background, and a closed terminal would end one under nohup."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        with stopping() as stop:
            for number in before:
                os.kill(os.getpid(), number)
            assert stop.agreed() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_second_request_ends_the_process() -> None:
    """Guards a run that cannot be ended while it saves on a disk that hangs."""
    text = """
import os, signal
from emu3.training import ranks as module
module.PATIENCE = -1.0
with module.stopping():
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "goes on\n")


def test_a_run_in_another_thread_is_left_alone() -> None:
    """Python has handlers in the main thread alone; a notebook's run must not fail for it."""
    found: list[Any] = []

    def work() -> None:
        with stopping() as stop:
            found.append(stop.agreed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


def test_the_end_says_how_to_go_on(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        module.end_run(tmp_path, signal.SIGUSR1, "the state after 3 steps is saved")
    assert ended.value.code == 128 + signal.SIGUSR1
    assert capsys.readouterr().out == (
        f"{tmp_path}: SIGUSR1: the state after 3 steps is saved; the same command goes on from there\n"
    )
