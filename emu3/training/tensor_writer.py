"""Tensors to safetensors files of bounded size, one at a time, by the one rank that writes.

The other ranks help to put each tensor together and know nothing of the disk. So an error of the disk is kept until
the end: a writer that left the loop at once would leave them waiting for it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

FILE_BYTES = 2**32
WRITE_ERRORS = (OSError, SafetensorError)  # such as a full disk


class TensorWriter:
    """Writes `stem-00000.safetensors` and so on into `folder`."""

    def __init__(self, folder: Path, stem: str, file_bytes: int = FILE_BYTES) -> None:
        self._folder = folder
        self._stem = stem
        self._file_bytes = file_bytes
        self._pending: dict[str, Tensor] = {}
        self._files = 0
        self._error: OSError | SafetensorError | None = None

    def add(self, key: str, tensor: Tensor) -> None:
        """Take a tensor; its values are copied now."""
        if self._error is None:
            self._pending[key] = tensor.detach().to("cpu", copy=True).contiguous()
            if sum(tensor.nbytes for tensor in self._pending.values()) >= self._file_bytes:
                self._flush()

    def close(self) -> None:
        """Write what is left. Raises the first error that there was."""
        if self._error is None and self._pending:
            self._flush()
        if self._error is not None:
            raise self._error

    def _flush(self) -> None:
        try:
            save_file(self._pending, self._folder / f"{self._stem}-{self._files:05d}.safetensors")
        except WRITE_ERRORS as error:
            self._error = error
        self._pending = {}
        self._files += 1
