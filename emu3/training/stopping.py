"""Signals that ask a training run to save and end: SIGTERM, SIGINT, and SIGUSR1, with which Slurm announces the end.

A signal is noted; the run looks at the note where its state is whole, and all ranks agree on what they saw before any
of them acts on it. A second signal, seconds later, ends the process as if nobody handled it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from emu3.training import ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PATIENCE = 5.0
"""Seconds within which one request may come several times: from a terminal, a launcher and a scheduler."""


class Stopping:
    """What was asked of this process. number: of the first signal, 0 before there was one. acted: whether the run ends
    for it."""

    def __init__(self) -> None:
        self.number = 0
        self.acted = False
        self._since = 0.0

    def agreed(self) -> int:
        """The largest number that any rank has noted. All ranks call at once."""
        self.number = max(ranks.gather(self.number))
        return self.number

    def note(self, number: int, _: Any) -> None:
        """The handler."""
        if self.number and time.monotonic() > self._since + PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self.number:
            self.number, self._since = number, time.monotonic()


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Note signals instead of ending by them, for as long as the context lasts. Outside of a process's main thread
    nothing is noted, since Python has handlers there alone."""
    stop = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_run(run: Path, number: int, saved: str) -> NoReturn:
    """End the process with the exit code of the signal. saved: which state is on disk."""
    ranks.meet()
    if int(os.environ.get("RANK", "0")) == 0:
        name = signal.Signals(number).name
        print(f"{run}: {name}: {saved}; the same command goes on from there", flush=True)
    raise SystemExit(128 + number)
