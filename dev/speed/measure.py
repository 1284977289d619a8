"""One measurement: ours and a peer's cost of the same work, taken in turns in one process.

Taking turns cancels what a busy machine does to both; the median forgets a disturbed turn.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from emu3.files import read_json, write_json


@dataclass(frozen=True)
class Speed:
    """ours, peer: costs in `unit`, lower is better. ratio: peer / ours. goal: what the ratio should reach, None where
    it is only reported. peer_is: what it was measured against."""

    name: str
    ours: float
    peer: float
    unit: str
    goal: float | None
    peer_is: str

    @property
    def ratio(self) -> float:
        return self.peer / self.ours

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": round(self.ratio, 3)}


# Peak of a process that does one of two things once.
_PEAK = """
import importlib, sys
from dev.speed.measure import added_memory
module, ways, who, *arguments = sys.argv[1:]
ours, peer = getattr(importlib.import_module(module), ways)(*arguments)
print(added_memory({"ours": ours, "peer": peer}[who]))
"""


def peaks(ways: Callable[..., tuple[object, object]], *arguments: str) -> tuple[float, float]:
    """`added_memory` of the two things that `ways(*arguments)` gives, each done once in a fresh process."""

    def peak(who: str) -> float:
        command = [sys.executable, "-c", _PEAK, ways.__module__, ways.__name__, who, *arguments]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])

    return peak("ours"), peak("peer")


def seconds(
    ours: Callable[[], object],
    peer: Callable[[], object],
    turns: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Median seconds of each, over `turns` turns of one call each, after one call of each to warm up. clock:
    `time.process_time` counts those of the processor, which other work on the machine does not prolong."""
    ours(), peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for work, taken in zip((ours, peer), times, strict=True):
            gc.collect()
            start = clock()
            work()
            taken.append(clock() - start)
    return median(times[0]), median(times[1])


def added_memory(work: Callable[[], object]) -> float:
    """Megabytes that `work` needs at its peak beyond what the process holds before (Linux).

    In a process of its own: what was freed earlier and is used again would not count.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on
    before = process_memory("VmRSS")
    work()
    return process_memory("VmHWM") - before


def process_memory(name: str) -> float:
    """Megabytes, by a name of Linux's /proc/self/status."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


def machine() -> dict[str, Any]:
    """Date and hardware, which belong to every number."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Its maker's name for it (Linux), or the kind of machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record(results: Sequence[Speed], path: Path, machine: dict[str, Any]) -> None:
    """Put the results into the list in `path`, in the place of older ones of the same names."""
    known = {entry["name"]: entry for entry in read_json(path)} if path.is_file() else {}
    known |= {result.name: {**result.as_dict(), **machine} for result in results}
    write_json(path, list(known.values()))


def table(results: Sequence[Speed]) -> str:
    """The results as lines for a terminal."""
    lines = [f"{'':24}{'ours':>12}{'peer':>12} {'unit':10}{'ratio':>8}{'goal':>7}   against"]
    for result in results:
        goal = "" if result.goal is None else f">={result.goal:g}"
        missed = "" if result.goal is None or result.ratio >= result.goal else "  MISSED"
        lines.append(
            f"{result.name:24}{_short(result.ours):>12}{_short(result.peer):>12} {result.unit:10}"
            f"{result.ratio:8.2f}{goal:>7}   {result.peer_is}{missed}"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return json.dumps(float(f"{value:.4g}"))
