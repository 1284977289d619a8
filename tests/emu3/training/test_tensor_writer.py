"""Files of bounded size, and a disk that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emu3.training.zero_state import TensorWriter


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
