"""Each check of the machine, seen to fail."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from emu3.errors import UserError
from rl.check_node import machine
from rl.check_node.check import Node, Skipped

CPU = Node(0, Path("runs"), None)
FOUR = dataclasses.replace(CPU, gpus=4)
H100 = {"name": "NVIDIA H100 80GB HBM3", "free_bytes": 84 * 10**9, "bytes": 85 * 10**9, "capability": [9, 0]}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four H100s under a driver; its argument changes one of them, its second how many torch sees."""

    def install(changed: dict[str, Any] | None = None, seen: int = 4, cuda: str | None = "13.0") -> None:
        monkeypatch.setattr(machine, "_driver", lambda: (4, "580.65.06"))
        monkeypatch.setattr(machine, "_devices", lambda: [{**H100, **(changed or {})}, *[H100] * 3][:seen])
        monkeypatch.setattr(torch.version, "cuda", cuda)

    return install


def test_gpus(driver: Any) -> None:
    driver()
    line, facts = machine.gpus(FOUR)
    assert line.startswith("4 x NVIDIA H100 80GB HBM3, 84 of 85 GB free") and len(facts["gpus"]) == 4
    with pytest.raises(Skipped, match="CUDA_VISIBLE_DEVICES hides all 4"):
        machine.gpus(CPU)


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        ({"changed": {"free_bytes": 9 * 10**9}}, "GPU 0 has 9 of 85 GB free: another process"),
        ({"changed": {"capability": [7, 0]}}, "computes no bfloat16"),
        ({"seen": 3}, "sees 3 of 4 GPUs under driver 580.65.06"),
        ({"cuda": None}, "built without CUDA"),
    ],
)
def test_gpus_that_cannot_be_used(driver: Any, stub: dict[str, Any], message: str) -> None:
    driver(**stub)
    with pytest.raises(UserError, match=message):
        machine.gpus(FOUR)


def test_ranks_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(arguments: list[str], seconds: float) -> str:
        raise UserError("launch ended with code 1: NCCL error")

    monkeypatch.setattr(machine, "command", fails)
    with pytest.raises(UserError, match="NCCL error"):
        machine.ranks(FOUR)


def test_slow_ways_between_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(arguments: list[str], seconds: float) -> str:
        assert arguments[3:5] == ["--ranks", "4"]
        Path(arguments[7]).write_text(json.dumps({"ranks": 4, "backend": "nccl", "gb_per_s": 3.0}))
        return ""

    monkeypatch.setattr(machine, "command", told)
    assert "that is slow between GPUs" in machine.ranks(FOUR)[0]


def test_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of 4 GPUs keeps the reference of each rank there: 17 GB four times."""
    monkeypatch.setattr(machine, "_main_memory", lambda: (500 * 10**9, 60 * 10**9))
    line, facts = machine.main_memory(CPU)
    assert "60 of 500 GB free" in line and facts["needed_bytes"] == 6e9
    with pytest.raises(UserError, match=r"RL at full size on 4 GPUs needs \d+ GB"):
        machine.main_memory(FOUR)


def test_a_containers_limit_is_the_memory_there_is(tmp_path: Path) -> None:
    """Guards a job of 8 GB on a machine of 500 that is told to go ahead and killed for it."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 500000000 kB\nMemAvailable: 400000000 kB\n")
    assert machine._main_memory(tmp_path) == (500_000_000 * 1024, 400_000_000 * 1024)
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000000000\n")
    assert machine._main_memory(tmp_path)[0] == 500_000_000 * 1024
    (group / "memory.max").write_text("8000000000\n")
    assert machine._main_memory(tmp_path) == (8 * 10**9, 7 * 10**9)


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Skipped):
        machine.shared_memory(CPU)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20))
    with pytest.raises(UserError, match="--shm-size"):
        machine.shared_memory(FOUR)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**36, 0, 2**35))
    assert "in /dev/shm" in machine.shared_memory(FOUR)[0]


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is the one of which README and issue speak; nothing is left behind."""
    folder = tmp_path / "runs" / "rl"
    line, facts = machine.disk(dataclasses.replace(CPU, run_folder=folder))
    assert "a checkpoint at full size has 119 GB" in line and facts["write_bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(machine, "write_speed", lambda folder, most: 1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 3 * 10**11))
    with pytest.raises(UserError, match=r"3 checkpoints take 357 GB: set APP__BASE_EXP_DIR"):
        machine.disk(dataclasses.replace(FOUR, run_folder=folder))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**8))
    with pytest.raises(UserError, match="1 GB are needed"):
        machine.disk(dataclasses.replace(CPU, run_folder=folder))


def test_a_disk_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written to .*choose another APP__BASE_EXP_DIR"):
        machine.disk(dataclasses.replace(CPU, run_folder=tmp_path / "file" / "rl"))


def test_packages_as_they_are() -> None:
    line, facts = machine.packages(CPU)
    assert "packages as required" in line
    assert facts["versions"]["torch"] == torch.__version__ and facts["faults"] == []


@pytest.mark.parametrize(
    ("name", "version", "fault"),
    [
        ("transformers", "4.44.0", "transformers 4.44.0 is installed, expected transformers<5.20,>=5.19"),
        ("numpy", "1.26.4", "numpy 1.26.4 is installed, expected numpy>=2"),
        ("pyarrow", None, "pyarrow is not installed"),
        ("deepspeed", "0.18.0", "deepspeed 0.18.0 is installed"),
        ("filelock", None, "needs filelock, which is not installed"),
        ("fsspec", "0.1", "needs fsspec"),
    ],
)
def test_packages_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, fault: str
) -> None:
    """Ours, those of an extra that is installed, and what they ask for in turn; an extra that is absent is none."""
    found = machine._version
    monkeypatch.setattr(machine, "_version", lambda other: version if other == name else found(other))
    with pytest.raises(UserError, match=r"pip install -r requirements\.txt") as caught:
        machine.packages(CPU)
    assert any(fault in told for told in caught.value.facts["faults"])  # type: ignore[attr-defined]


def test_what_differs_from_the_pinned_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = machine._text("requirements.txt").replace("tqdm==", "tqdm==9")
    found = machine._text
    monkeypatch.setattr(machine, "_text", lambda name: pins if name == "requirements.txt" else found(name))
    line, _ = machine.packages(CPU)
    assert "other than requirements.txt:" in line and "tqdm 4." in line
