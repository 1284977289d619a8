"""Kill every stage at random moments, call it again each time, and compare the end with a run that nobody disturbed.

    python -m dev.kills --output /tmp/kills                         200 kills over all stages, an hour or two
    python -m dev.kills --output /tmp/kills --signals               SIGTERM, SIGINT, SIGHUP, SIGKILL to each long stage
    python -m dev.kills --output /tmp/kills --stages rl table --kills 20 --seed 1

A third of the kills come at any moment, imports included; the others once the command has begun to write. Half of them
hit the command alone, half its whole process group. What is counted: files that differ or are left over at the end,
processes that outlive the command. `kills.json` in the folder holds all of it; the exit code is 1 if there is any.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dev.kills.compare import differences
from dev.kills.stages import Stage, make_results, make_stages, steady_reply
from emu3.errors import UserError, run_main
from emu3.files import write_json
from emu3.flags import CommandParser
from rl.check_node.judge import stub_judge
from rl.config_file import STAND_INS

MARK = "EARL_KILLED_RUN"
FAREWELL = 60.0
"""Seconds within which everything that a command started has to be gone after it."""
PATIENCE = 900.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)


@dataclass
class Findings:
    """What the kills of a stage led to. kills: that came before the command's own end. ends: runs that were
    compared."""

    kills: int = 0
    ends: int = 0
    differences: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SignalRow:
    """One signal to one stage. end: the last line of its output."""

    stage: str
    signal: str
    exit_code: int
    seconds: float
    end: str
    orphans: int
    differences: int


class Run:
    """A command in a session of its own; its children are known by a variable in their environment."""

    def __init__(self, stage: Stage, out: Path, log: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._log = log
        environment = {**os.environ, **STAND_INS, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", MARK: self._mark}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, stage.command(out))],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def until_writing(self, out: Path, before: int) -> None:
        """Wait until the folder has other entries than `before`, or the command has ended."""
        while _entries(out) == before and self.process.poll() is None:
            time.sleep(0.002)

    def send(self, number: signal.Signals, group: bool = False) -> None:
        os.killpg(self.process.pid, number) if group else self.process.send_signal(number)

    def last_line(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def orphans(self) -> list[str]:
        """Commands that still run `FAREWELL` seconds after the command; they are ended."""
        deadline = time.monotonic() + FAREWELL
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return [command[:200] for command in left.values()]

    def _left(self) -> dict[int, str]:
        found = {}
        for place in Path("/proc").iterdir():
            try:
                ours = place.name.isdigit() and f"{MARK}={self._mark}".encode() in (place / "environ").read_bytes()
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ") if ours else b""
            except OSError:  # it has just ended
                continue
            if command:  # one that has ended and was not waited for has none
                found[int(place.name)] = command.decode(errors="replace")
        return found


class Harness:
    """The runs of one stage, one after the other in one folder, so that every path in their files is the same."""

    def __init__(self, stage: Stage, folder: Path, generator: random.Random) -> None:
        self.stage = stage
        self._out = folder / stage.name / "out"
        self._whole = folder / stage.name / "whole"
        self._log = folder / stage.name / "log"
        self._random = generator
        shutil.rmtree(folder / stage.name, ignore_errors=True)
        self._out.parent.mkdir(parents=True)
        self._fresh()
        began = time.monotonic()
        run = Run(stage, self._out, self._log)
        run.until_writing(self._out, _entries(self._out))
        self._imports = time.monotonic() - began
        if run.process.wait(PATIENCE):
            raise UserError(f"{stage.name} fails by itself: {run.last_line()}; its log is {self._log}")
        self._seconds = time.monotonic() - began
        self._out.rename(self._whole)

    def kill(self, count: int) -> Findings:
        """Kill runs until that happened `count` times; compares each run that reaches its end."""
        found = Findings()
        self._fresh()
        while found.kills < count:
            run = Run(self.stage, self._out, self._log)
            self._wait_for_a_moment(run)
            if run.process.poll() is None:
                run.send(signal.SIGKILL, group=self._random.random() < 0.5)
            code = run.process.wait(PATIENCE)
            found.orphans += run.orphans()
            if code == -signal.SIGKILL:
                found.kills += 1
                continue
            self._take(run, code, found)
            self._fresh()
        run = Run(self.stage, self._out, self._log)
        self._take(run, run.process.wait(PATIENCE), found)
        return found

    def signal(self, number: signal.Signals) -> SignalRow:
        """Send one signal while the command writes, then let a second call finish."""
        self._fresh()
        run = Run(self.stage, self._out, self._log)
        run.until_writing(self._out, _entries(self._out))
        time.sleep(self._random.uniform(0, 0.5) * (self._seconds - self._imports))
        began = time.monotonic()
        run.send(number)
        code = run.process.wait(PATIENCE)
        seconds, end, orphans = time.monotonic() - began, run.last_line(), run.orphans()
        second = Run(self.stage, self._out, self._log)
        found = Findings()
        self._take(second, second.process.wait(PATIENCE), found)
        code = 128 - code if code < 0 else code
        wrong = len(found.differences) + len(found.refusals)
        return SignalRow(self.stage.name, number.name, code, round(seconds, 1), end, len(orphans), wrong)

    def _wait_for_a_moment(self, run: Run) -> None:
        if self._random.random() < 1 / 3:
            moment = time.monotonic() + self._random.uniform(0, self._imports)
        else:
            run.until_writing(self._out, _entries(self._out))
            moment = time.monotonic() + self._random.uniform(0, self._seconds - self._imports)
        while time.monotonic() < moment and run.process.poll() is None:
            time.sleep(0.005)

    def _take(self, run: Run, code: int, found: Findings) -> None:
        """Note how a run ended by itself."""
        found.orphans += run.orphans()
        if code == 2 and not differences(self._whole, self._out):  # killed behind its last file: there is nothing to do
            code = 0
        if code:
            found.refusals.append(f"exit code {code}: {run.last_line()[:300]}")
            return
        found.ends += 1
        found.differences += differences(self._whole, self._out)

    def _fresh(self) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        if self.stage.given is not None:
            shutil.copytree(self.stage.given, self._out)


def _entries(folder: Path) -> int:
    """Grows and shrinks as files come and go."""
    total = 0
    for _, folders, files in os.walk(folder):
        total += len(folders) + len(files)
    return total


def main() -> None:
    parser = CommandParser(old={"--output-dir": "--output"}, description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--kills", type=int, default=200, help="over all stages")
    parser.add_argument("--stages", nargs="+", help="default: all")
    parser.add_argument("--signals", action="store_true", help="send each signal to each long stage instead")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    folder = options.output.absolute()
    wrong = 0
    with stub_judge(steady_reply) as judge:
        stages = make_stages(folder / "world", judge)
        if unknown := set(options.stages or ()) - stages.keys():
            raise UserError(f"there is no stage {min(unknown)}; there are {', '.join(stages)}")
        chosen = [stages[name] for name in options.stages or stages]
        if {"score", "table", "report"} & {stage.name for stage in chosen}:
            make_results(folder / "world", judge)
        results: dict[str, object] = {}
        for place, stage in enumerate(chosen):
            harness = Harness(stage, folder, random.Random(f"{options.seed} {stage.name}"))
            if options.signals:
                if stage.long:
                    rows = [harness.signal(number) for number in SIGNALS]
                    results[stage.name] = [asdict(row) for row in rows]
                    wrong += sum(row.orphans + row.differences for row in rows)
            else:
                share = options.kills // len(chosen) + (place < options.kills % len(chosen))
                found = harness.kill(share)
                results[stage.name] = asdict(found)
                wrong += len(found.differences) + len(found.orphans) + len(found.refusals)
            print(json.dumps({stage.name: results.get(stage.name)}), flush=True)
            write_json(folder / ("signals.json" if options.signals else "kills.json"), results)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    run_main(main)
