"""Run the stages of a pipeline as the commands that a person would type, as many at a time as there are cores.

A task is one or more commands side by side, the tasks that have to be done before it, and the cores that it keeps busy.
Its output goes to `logs/`, what it cost to `stages.json`; a task that is in there is not run again, so a pipeline that
was interrupted continues where it stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu3.errors import UserError, end_with_parent
from emu3.files import read_json, write_json
from emu3.run_folder import check_version

Command = list[str | Path]

VERSION = 2
"""Of stages.json; 1 had none."""
ADDRESS = "{address}"
"""Stands for the address of a task's server in its commands and its environment."""
_STARTUP = 60.0  # seconds a server may take until it writes its address
_FAREWELL = 10.0  # seconds a process gets to end before it is killed
_TICK = 0.2  # seconds between two looks at the processes
_FORMER_NAMES = {"tokenise": "tokenize"}  # of stages, in folders of older runs


@dataclass(frozen=True)
class Task:
    """Commands, each of which keeps `cores` cores busy, to run once all tasks in `needs` are done.

    name: `group:part` where a former version had one stage for the whole group; its folders continue. server: what has
    to run meanwhile. environment: on top of this process's.
    """

    name: str
    commands: tuple[Command, ...]
    needs: tuple[str, ...] = ()
    cores: int = 1
    server: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A command that serves until it is ended, and the file that gets its address once it does."""

    command: Command
    address_file: Path


@dataclass
class Running:
    """A task under way. waiting: commands that no core was free for yet, with their logs. shared: seconds of the clock
    that count for other tasks, which ran at the same time."""

    task: Task
    log: Path
    waiting: list[tuple[Command, Path]]
    processes: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    core_seconds: float = 0.0
    shared: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def busy(self) -> int:
        """Cores that it has."""
        return len(self.processes) * self.task.cores

    def take_ended(self) -> tuple[int, Path] | None:
        """Let go of processes that have ended; returns exit code and log of one that failed."""
        failed = None
        for process, log in self.processes:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                self.core_seconds += usage.ru_utime + usage.ru_stime
                failed = failed or ((process.returncode, log) if process.returncode else None)
        self.processes = [(process, log) for process, log in self.processes if process.returncode is None]
        return failed


class Stages:
    """The stages of the run in `folder`. Commands are arguments of the running Python. progress: what shows them."""

    def __init__(self, folder: Path, cores: int, progress: Progress | None = None) -> None:
        self.folder = folder
        self.cores = cores
        self.progress = progress or Progress()
        self.file = folder / "stages.json"
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        done = read_json(self.file) if self.file.exists() else {}
        check_version(self.file, done, VERSION)
        done.pop("version", None)
        self.done: dict[str, dict[str, float]] = {_FORMER_NAMES.get(name, name): cost for name, cost in done.items()}

    def is_done(self, name: str) -> bool:
        return name in self.done or name.partition(":")[0] in self.done

    def run(self, name: str, *commands: Command) -> None:
        """Run the commands of one stage, at most `cores` at once. Raises UserError with the end of the log if one
        fails; the others are stopped."""
        self.run_all([Task(name, commands)])

    def run_all(
        self,
        tasks: Sequence[Task],
        servers: Mapping[str, Server] | None = None,
        *,
        keep_going: bool = False,
        may_start: Callable[[Task], bool] = lambda _: True,
    ) -> dict[str, str]:
        """Run tasks until all are done, the earlier ones first where several could go.

        keep_going: a task that fails costs only those that need it, instead of ending all with UserError. may_start:
        whether there is time left for a task. Returns why tasks failed, by name; those whose turn never came are not
        among them.
        """
        failures: dict[str, str] = {}
        left = [task for task in tasks if not self.is_done(task.name)]
        for task in tasks:
            if self.is_done(task.name):
                self.progress.note(f"{task.name}: done before")
        running: list[Running] = []
        last = time.monotonic()
        addresses: dict[str, tuple[str, ExitStack]] = {}
        try:
            while True:
                lost = next(((task, name) for task in left for name in task.needs if name in failures), None)
                if lost:
                    left.remove(lost[0])
                    failures[lost[0].name] = f"{lost[1]} failed before it"
                    continue
                ready = [task for task in left if all(map(self.is_done, task.needs))]
                for task in [*(one.task for one in running), *filter(may_start, ready)]:
                    if task in left:
                        if sum(one.busy for one in running) + task.cores > self.cores:
                            break  # what takes more cores is not overtaken for ever by what takes fewer
                        left.remove(task)
                        if task.server and task.server not in addresses:
                            server, stack = (servers or {})[task.server], ExitStack()
                            try:
                                url = stack.enter_context(self.server(task.server, server.command, server.address_file))
                            except UserError as error:
                                if not keep_going:
                                    raise
                                said = last_line(self.folder / "logs" / f"{task.server}.log")
                                failures[task.name] = f"{error}: {said}"
                                continue
                            addresses[task.server] = url, stack
                        running.append(self._begin(task))
                    one = next(one for one in running if one.task is task)
                    self._fill(one, running, addresses.get(task.server, ("",))[0])
                if not running and not any(task.name in failures for task in ready):
                    if left and not ready:
                        raise ValueError(f"nothing can run of {', '.join(task.name for task in left)}")
                    return failures
                time.sleep(_TICK)
                now = time.monotonic()
                for one in running:
                    one.shared += (now - last) * (1 - 1 / len(running))
                last = now
                self.progress.show(running)
                for one in list(running):
                    failed = one.take_ended()
                    if failed:
                        failures[one.task.name] = self._failure(one, *failed)
                        if not keep_going:
                            raise UserError(failures[one.task.name])
                        failures[one.task.name] += f": {last_line(failed[1])}"
                        self._stop_all([one])
                        running.remove(one)
                    elif not one.processes and not one.waiting:
                        running.remove(one)
                        self._finish(one)
                for name in set(addresses) - {one.server for one in [*left, *(one.task for one in running)]}:
                    addresses.pop(name)[1].close()
        finally:
            self._stop_all(running)
            for _, stack in addresses.values():
                stack.close()

    def _begin(self, task: Task) -> Running:
        several = len(task.commands) > 1
        names = [f"{task.name.replace(':', '-')}{f'-{n}' if several else ''}.log" for n in range(len(task.commands))]
        logs = [self.folder / "logs" / name for name in names]
        self.progress.note(f"{task.name} ...", live=False)
        return Running(task, logs[0], list(zip(task.commands, logs, strict=True)))

    def _fill(self, one: Running, running: list[Running], address: str) -> None:
        """Start what waits of a task, on cores that are free."""
        task = one.task
        while one.waiting and sum(other.busy for other in running) + task.cores <= self.cores:
            command, log = one.waiting.pop(0)
            variables = {name: value.replace(ADDRESS, address) for name, value in task.environment.items()}
            parts: Command = [str(part).replace(ADDRESS, address) for part in command]
            one.processes.append((_start(parts, log, variables), log))
            one.log = log

    def _finish(self, one: Running) -> None:
        seconds = one.seconds
        self.done[one.task.name] = {"seconds": round(seconds, 1), "core_seconds": round(one.core_seconds, 1)}
        if one.shared:
            self.done[one.task.name]["wall_seconds"] = round(max(0.0, seconds - one.shared), 1)
        write_json(self.file, {"version": VERSION, **self.done})
        self.progress.finished(one)

    def _failure(self, one: Running, code: int, log: Path) -> str:
        self.progress.clear()
        print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
        return f"stage {one.task.name} failed with exit code {code}; its log is {log}"

    def _stop_all(self, running: Sequence[Running]) -> None:
        self.progress.clear()
        for one in running:
            for process, _ in one.processes:
                _stop(process)

    @contextmanager
    def server(self, name: str, command: Command, address_file: Path) -> Iterator[str]:
        """Run a server for the length of a `with` block; yields the address that it writes to `address_file`."""
        address_file.unlink(missing_ok=True)
        log = self.folder / "logs" / f"{name}.log"
        process = _start(command, log)
        try:
            deadline = time.monotonic() + _STARTUP
            while not address_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise UserError(f"{name} did not start; its log is {log}")
                time.sleep(0.1)
            yield address_file.read_text().strip()
        finally:
            _stop(process)
            address_file.unlink(missing_ok=True)

    def costs(self) -> dict[str, Any]:
        """Seconds of each task from its start to its end, and those of the whole by the clock: tasks that ran side by
        side count once."""
        wall = sum(cost.get("wall_seconds", cost["seconds"]) for cost in self.done.values())
        return {"wall_seconds": round(wall, 1), "stages": {name: cost["seconds"] for name, cost in self.done.items()}}


class Progress:
    """One line with the tasks under way, their age and the last line of the first one's log, on a terminal; what began
    and ended, everywhere."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()

    def note(self, text: str, *, live: bool = True) -> None:
        """A line that stays. live: on a terminal too."""
        if live or not self.live:
            self.clear()
            print(text, flush=True)

    def finished(self, one: Running) -> None:
        """A task is done and written down."""
        self.note(f"{one.task.name}: {one.seconds:.0f} s")

    def show(self, running: Sequence[Running]) -> None:
        if self.live and running:
            tasks = ", ".join(f"{one.task.name} {one.seconds:4.0f} s" for one in running)
            line = f"{tasks} | {last_line(running[0].log)}"
            print(f"\r\033[K{line[: os.get_terminal_size().columns - 1]}", end="", flush=True)

    def clear(self) -> None:
        if self.live:
            print("\r\033[K", end="", flush=True)


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP, by a scheduler or a lost terminal, unwind this process as an interruption from the
    keyboard does: the processes of its stages end with it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def module(name: str, /, *positional: str | Path, ranks: int = 1, **flags: Any) -> Command:
    """The command `python -m name`, under `emu3.launch` for several ranks.

    A flag `a_b=value` becomes `--a-b value`, a list several values; None leaves the flag out.
    """
    command: Command = ["-m", name, *positional]
    if ranks > 1:
        command = ["-m", "emu3.launch", "--ranks", str(ranks), *command[1:]]
    for flag, value in flags.items():
        values = value if isinstance(value, list) else [value]
        if value is not None:
            command += [f"--{flag.replace('_', '-')}", *map(str, values)]
    return command


def _start(command: Command, log: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    # One thread each: the stages keep the cores busy by their number of processes.
    environment = {**os.environ, **(variables or {}), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    parent = os.getpid()
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(parent),  # before it is anything: imports take seconds
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children; they have a session of their own."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_FAREWELL)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
