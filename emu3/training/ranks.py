"""Ranks that wait for each other's work on the host, how long any of them may wait, and how all end on a signal.

A collective of the device's group (NCCL) starts its clock when the first rank arrives: its watchdog ends the job if
the last one, which writes a checkpoint or asks a judge, comes later than the group's timeout. So nobody waits for such
work there. The functions below go over a gloo group of their own, which has a day: who is at work takes what it takes,
and a rank that died is noticed at once, since its connections close. Then the device's group needs only as long as
ranks differ in computing, and a rank that hangs is found in minutes.

All ranks call each function, at the same place. Without a process group, or in one of a single rank, they do nothing
but what the caller would have done. The group needs a network address: where a machine's name does not lead to one that
the other machines reach, GLOO_SOCKET_IFNAME names the interface.

SIGTERM, SIGINT, SIGHUP of a terminal that closes, and those with which schedulers announce the end (SIGUSR1, SIGUSR2,
SIGXCPU), ask a run to save and end, unless it was started to ignore them, as by nohup. A signal is noted; the run looks
at the note where its state is whole, and all ranks agree on what they saw before any of them acts on it. A second
signal, seconds later, ends the process as if nobody handled it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed import distributed_c10d

from emu3.errors import UserError, one_line, signals_to_end
from emu3.files import whole_folder
from emu3.run_folder import owned

HOST_TIMEOUT = timedelta(days=1)
LAUNCHER_SECONDS = 10.0
SHARED_ERRORS = (UserError, OSError, SafetensorError)
PATIENCE = 5.0
"""Seconds within which one request may come several times: from a terminal, a launcher and a scheduler."""

T = TypeVar("T")

_groups: dict[Any, Any] = {}


def meet() -> None:
    """Wait until every rank is here, however long its work takes."""
    group = _host_group()
    if group is not None:
        _surely(lambda: dist.barrier(group))


def is_first() -> bool:
    """Whether this is rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def on_first(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 alone and give its value, which has to be a plain one, to every rank.

    An error that a person can mend (`SHARED_ERRORS`) is raised on all ranks; another one is raised on rank 0, and on
    the others a RuntimeError that names it.
    """
    group = _host_group()
    if group is None:
        return work()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except SHARED_ERRORS as error:
            outcome[1] = error
        except Exception as error:
            outcome[1] = RuntimeError(f"rank 0 failed: {type(error).__name__}: {one_line(error)}")
            _surely(lambda: dist.broadcast_object_list(outcome, src=0, group=group))
            raise
    _surely(lambda: dist.broadcast_object_list(outcome, src=0, group=group))
    value, fault = outcome
    if fault is not None:
        raise fault
    return value  # type: ignore[no-any-return]


@contextmanager
def whole_folder_of_first(folder: Path) -> Iterator[Path | None]:
    """`emu3.files.whole_folder` on rank 0, None on the others; what opening it raises is everybody's."""
    with ExitStack() as stack:
        temporary = on_first(lambda: stack.enter_context(whole_folder(folder)))
        yield temporary if is_first() else None


@contextmanager
def owned_by_first(folder: Path) -> Iterator[None]:
    """`emu3.run_folder.owned` by rank 0 for all; what opening it raises is everybody's."""
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(owned(folder)))
        yield


def gather(value: T) -> list[T]:
    """Every rank's value, a plain one, in the order of the ranks."""
    group = _host_group()
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    _surely(lambda: dist.all_gather_object(values, value, group=group))
    return values


def set_device_timeout(timeout: timedelta) -> None:
    """Let every group that there is, but that of this module, give up after `timeout`.

    `init_process_group(timeout=...)` sets it for the first group alone. Groups that DeepSpeed and vLLM make have the
    backend's default: NCCL's ten minutes.
    """
    if dist.is_initialized():
        for group in list(distributed_c10d._world.pg_map):
            if group is not _host_group():
                distributed_c10d._set_pg_timeout(timeout, group)


def _host_group() -> Any:
    """The gloo group of all ranks, made when it is first asked for; None where there is nobody to wait for."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()  # those of a world that was taken down
        _groups[world] = dist.new_group(backend="gloo", timeout=HOST_TIMEOUT)
    return _groups[world]


def _surely(collective: Callable[[], Any]) -> None:
    """Run a collective of the host's group. Raises UserError if another rank is gone.

    That rank has said why. Its message stays the last one if this rank waits for the launcher, which ends it soon.
    """
    try:
        collective()
    except RuntimeError as error:
        time.sleep(LAUNCHER_SECONDS)
        reason = one_line(error).partition(". ")[0]
        raise UserError(f"another rank is gone, and its messages say why ({reason})") from error


class Stopping:
    """What was asked of this process. number: of the first signal, 0 before there was one. acted: whether the run ends
    for it."""

    def __init__(self) -> None:
        self.number = 0
        self.acted = False
        self._since = 0.0

    def agreed(self) -> int:
        """The largest number that any rank has noted. All ranks call at once."""
        self.number = max(gather(self.number))
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
    before = {number: signal.signal(number, stop.note) for number in signals_to_end()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_run(run: Path, number: int, saved: str) -> NoReturn:
    """End the process with the exit code of the signal. saved: which state is on disk."""
    meet()
    if int(os.environ.get("RANK", "0")) == 0:
        name = signal.Signals(number).name
        print(f"{run}: {name}: {saved}; the same command goes on from there", flush=True)
    raise SystemExit(128 + number)
