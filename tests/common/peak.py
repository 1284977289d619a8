"""How much memory tensors take at most: every storage that an operation makes on a device, from its birth to its end.

Blocks are rounded to 512 bytes, as CUDA's allocator does; what it loses between blocks is not seen, nor a kernel's own
work space. Where gradients of one tensor come together autograd adds them in place, but not while a dispatch mode is
active: so this one does it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
# References to a gradient that nobody else holds, as a dispatch mode sees them: to the tensor, and to its storage.
ALONE = (4, 2)


class Peak(TorchDispatchMode):
    """device: its type. known: tensors that were there before and are not counted. now, peak: bytes. operations: that
    made something there."""

    def __init__(self, device: str, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.operations: set[str] = set()
        self._device = device
        self._alive: dict[int, tuple[int, str]] = {}
        self._largest: list[tuple[int, str]] = []
        for tensor in known:
            self._add(tensor, "known", 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Layers that are computed again within the backward pass have their gradient mode on.
        backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        if func is torch.ops.aten.add.Tensor and backward and not kwargs:
            for mine, other in (args, args[::-1]):
                if _tensors(mine, other) and mine.dtype == other.dtype and _alone(mine):
                    return mine.add_(other)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device:
                self.operations.add(str(func))
                self._add(leaf, f"{func} {tuple(leaf.shape)}", None)
        return out

    def restart(self) -> None:
        """Forget the peak, not what is there."""
        self.peak, self._largest = self.now, list(self._alive.values())

    def table(self, rows: int = 12) -> str:
        """The largest of what was there at the peak: GB by operation and shape."""
        found: Counter[str] = Counter()
        for size, name in self._largest:
            found[name] += size
        return "\n".join(f"{size / 1e9:9.3f}  {name}" for name, size in found.most_common(rows))

    def _add(self, tensor: Tensor, name: str, size: int | None) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._alive:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK if size is None else size
        self._alive[place] = size, name
        weakref.finalize(storage, self._remove, place)
        self.now += size
        if self.now > self.peak:
            self.peak, self._largest = self.now, list(self._alive.values())

    def _remove(self, place: int) -> None:
        self.now -= self._alive.pop(place)[0]


def _tensors(*values: object) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _alone(gradient: Tensor) -> bool:
    storages = torch._C._storage_Use_Count(gradient.untyped_storage()._cdata)
    return (gradient._use_count(), storages) == ALONE and is_non_overlapping_and_dense_or_false(gradient)
