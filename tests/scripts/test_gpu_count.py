"""How many GPUs scripts/environment.sh counts, beside a stand-in for nvidia-smi."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ENVIRONMENT = Path(__file__).parents[2] / "scripts" / "environment.sh"
UUIDS = [f"GPU-{digit * 8}-aaaa-bbbb-cccc-dddddddddddd" for digit in ("10", "21", "32", "43")]
FOUR = "\n".join(f"GPU {number}: NVIDIA H100 80GB HBM3 (UUID: {uuid})" for number, uuid in enumerate(UUIDS))
PARTS = ["MIG-0aaaaaaa-1111", "MIG-1bbbbbbb-2222"]
DIVIDED = "\n".join(
    [f"GPU 0: NVIDIA A100 (UUID: {UUIDS[0]})"]
    + [f"  MIG 3g.20gb     Device  {number}: (UUID: {part})" for number, part in enumerate(PARTS)]
)
MIXED = f"{DIVIDED}\nGPU 1: NVIDIA A100 (UUID: {UUIDS[1]})"


def counted(folder: Path, listing: str, visible: str | None, code: int = 0) -> str:
    tool = folder / "nvidia-smi"
    (folder / "listing").write_text(listing + "\n" if listing else "")
    tool.write_text(f'#!/usr/bin/env bash\n[ "$1" = -L ] && cat "{folder}/listing"\nexit {code}\n')
    tool.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}"} | (
        {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    )
    command = f'set -euo pipefail; source "{ENVIRONMENT}"; gpu_count'
    return subprocess.run(
        ["bash", "-c", command], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("visible", "number"),
    [
        (None, 4),
        ("0,1,2,3", 4),
        ("4,5,6,7", 0),
        ("2,3", 2),
        (" 2 , 3 ", 2),
        ("", 0),
        ("-1", 0),
        ("0,-1,2", 1),
        ("0,9,1", 1),
        ("0,x,1", 1),
        ("NoDevFiles", 0),
        ("1,1", 0),
        (UUIDS[2], 1),
        (f"{UUIDS[0]},{UUIDS[3]}", 2),
        ("GPU-21", 1),
        ("GPU-", 0),
        ("GPU-ffff", 0),
        (f"{UUIDS[0]},GPU-ffff,{UUIDS[1]}", 1),
        (f"{UUIDS[0]},{UUIDS[0]}", 0),
    ],
)
def test_the_visible_ones_are_counted(tmp_path: Path, visible: str | None, number: int) -> None:
    """Guards 8 ranks on 4 visible GPUs, the other 4 being the judge's."""
    assert counted(tmp_path, FOUR, visible) == str(number)


@pytest.mark.parametrize(
    ("listing", "visible", "number"),
    [
        (DIVIDED, None, 1),
        (DIVIDED, "0", 1),
        (DIVIDED, PARTS[1], 1),
        (DIVIDED, ",".join(PARTS), 1),
        (DIVIDED, "MIG-ffff", 0),
        (MIXED, None, 1),
        (MIXED, "1", 1),
        (f"{MIXED}\nGPU 2: NVIDIA A100 (UUID: {UUIDS[2]})", None, 2),
    ],
)
def test_parts_of_a_gpu_are_no_gpus(tmp_path: Path, listing: str, visible: str | None, number: int) -> None:
    """Guards a rank for each line, indented ones included: a process sees one MIG device, whatever is listed."""
    assert counted(tmp_path, listing, visible) == str(number)


@pytest.mark.parametrize(
    "listing", ["", "No devices were found", "Failed to initialize NVML: Driver/library version mismatch"]
)
def test_no_gpu_is_none(tmp_path: Path, listing: str) -> None:
    """Guards a complaint of nvidia-smi that was taken for a GPU."""
    assert counted(tmp_path, listing, None, code=9) == "0"
    assert counted(tmp_path, listing, "0,1", code=9) == "0"
