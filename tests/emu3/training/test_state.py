"""Files of bounded size, a disk that fails, and state put back into partitions on a device that is not the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from emu3.training.state import MOMENTS, STEP, TensorWriter, _make_moments


@pytest.mark.parametrize(("group", "device"), [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_step_lies_where_adamw_reads_it(group: dict[str, bool], device: str, stage: int) -> None:
    """A fused step on a GPU ends with an error where the count lies on the CPU: every resumed run did. Partitions on
    `meta` are not on the CPU either."""
    flat = torch.zeros(4, device="meta")
    zero = SimpleNamespace(optimizer=SimpleNamespace(state={}, param_groups=[group]))
    if stage == 3:
        zero.fp32_partitioned_groups_flat = [flat]
    else:
        zero.single_partition_of_fp32_groups, zero.bit16_groups = [flat], [[]]
    _make_moments(SimpleNamespace(optimizer=zero), torch.tensor(7.0))
    state = zero.optimizer.state[flat]
    assert state[STEP].device.type == device and state[STEP].dtype == torch.float32
    assert all(state[kind].device.type == "meta" and state[kind].shape == flat.shape for kind in MOMENTS)


def test_files_are_cut_and_hold_everything(tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.full((10,), float(index)) for index in range(5)}
    writer = TensorWriter(tmp_path, "state", file_bytes=80)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
        tensor.add_(1)  # what is taken is a copy: a shard's buffer is used again
    writer.close()
    files = sorted(tmp_path.glob("state-*.safetensors"))
    assert len(files) == 3
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert {name: tensor[0].item() for name, tensor in found.items()} == {f"t{index}": index for index in range(5)}


def test_an_error_of_the_disk_comes_at_the_end(tmp_path: Path) -> None:
    """Guards ranks that wait for ever for one that left the loop."""
    writer = TensorWriter(tmp_path / "missing", "state", file_bytes=4)
    for index in range(3):
        writer.add(f"t{index}", torch.zeros(1))
    with pytest.raises(Exception, match=r"No such file|I/O error"):
        writer.close()


def test_nothing_is_compiled_on_a_cpu(tmp_path: Path) -> None:
    """Guards a minute of the compiler at the first start of every checkout, and the lock that its death leaves behind,
    for which all later starts wait without a word."""
    pytest.importorskip("deepspeed")
    code = "import torch\nfrom emu3.training.state import start_communication\nstart_communication(torch.device('cpu'))"
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[3])
    assert list(tmp_path.iterdir()) == []
