"""Run the stages of a pipeline as the commands that a person would type, one after the other.

A stage is one or more commands side by side. Its output goes to `logs/`, what it cost to `stages.json`; a stage that
is in there is not run again, so a pipeline that was interrupted continues where it stopped.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emu3.errors import UserError, end_with_parent
from emu3.files import read_json, write_json
from emu3.run_folder import check_version

Command = list[str | Path]

VERSION = 2
"""Of stages.json; 1 had none."""
_STARTUP = 60.0  # seconds a server may take until it writes its address
_FAREWELL = 10.0  # seconds a process gets to end before it is killed
_FORMER_NAMES = {"tokenise": "tokenize"}  # of stages, in folders of older runs


class Stages:
    """The stages of the run in `folder`. Commands are arguments of the running Python."""

    def __init__(self, folder: Path, cores: int) -> None:
        self.folder = folder
        self.cores = cores
        self.file = folder / "stages.json"
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        done = read_json(self.file) if self.file.exists() else {}
        check_version(self.file, done, VERSION)
        done.pop("version", None)
        self.done: dict[str, dict[str, float]] = {_FORMER_NAMES.get(name, name): cost for name, cost in done.items()}

    def run(self, name: str, *commands: Command) -> None:
        """Run the commands of a stage, at most `cores` at once. Raises UserError with the end of the log if one
        fails; the others are stopped."""
        if name in self.done:
            print(f"{name}: done before", flush=True)
            return
        started, cpu = time.monotonic(), _cpu_seconds()
        waiting = [
            (command, self.folder / "logs" / f"{name}{f'-{number}' if len(commands) > 1 else ''}.log")
            for number, command in enumerate(commands)
        ]
        running: list[tuple[subprocess.Popen[bytes], Path]] = []
        progress = _Progress(name)
        try:
            while waiting or running:
                while waiting and len(running) < self.cores:
                    command, log = waiting.pop(0)
                    running.append((_start(command, log), log))
                time.sleep(0.2)
                progress.show(running[0][1])
                for process, log in running:
                    if process.poll():
                        progress.clear()
                        print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
                        raise UserError(f"stage {name} failed with exit code {process.returncode}; its log is {log}")
                running = [(process, log) for process, log in running if process.returncode is None]
        finally:
            progress.clear()
            for process, _ in running:
                _stop(process)
        seconds = time.monotonic() - started
        self.done[name] = {"seconds": round(seconds, 1), "core_seconds": round(_cpu_seconds() - cpu, 1)}
        write_json(self.file, {"version": VERSION, **self.done})
        print(f"{name}: {seconds:.0f} s", flush=True)

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
        """Wall seconds of each stage, and their sum."""
        seconds = {name: cost["seconds"] for name, cost in self.done.items()}
        return {"wall_seconds": round(sum(seconds.values()), 1), "stages": seconds}


class _Progress:
    """One line with the stage, its age and the last line of its log; on a terminal only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = time.monotonic()
        self.live = sys.stdout.isatty()
        if not self.live:
            print(f"{name} ...", flush=True)

    def show(self, log: Path) -> None:
        if self.live:
            line = f"{self.name} {time.monotonic() - self.started:4.0f} s | {_last_line(log)}"
            print(f"\r\033[K{line[: os.get_terminal_size().columns - 1]}", end="", flush=True)

    def clear(self) -> None:
        if self.live:
            print("\r\033[K", end="", flush=True)


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


def _start(command: Command, log: Path) -> subprocess.Popen[bytes]:
    # One thread each: the stages keep the cores busy by their number of processes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
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


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
