"""How much memory tensors take at most: every storage that an operation makes on a device, from its birth to its end.

Blocks are rounded to 512 bytes, as CUDA's allocator does; what it loses between blocks is not seen. A kernel's own
work space is not seen either. Where several gradients of one tensor come together, autograd adds in place; while a
dispatch mode is active it does not, so this one does it for it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
# References to a gradient that nobody else holds, as this mode sees it: autograd's, and those of the call on its way.
ALONE = (4, 2)


class Peak(TorchDispatchMode):
    """device: its type. known: tensors that were there before and are not counted.

    now, peak: bytes. largest: what was there at the peak, bytes by operation and shape.
    """

    def __init__(self, device: str, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.largest: Counter[str] = Counter()
        self._device = device
        self._alive: dict[int, tuple[int, str]] = {}
        for tensor in known:
            self._add(tensor, "known", 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()  # but for recomputing
        if func is torch.ops.aten.add.Tensor and backward and not kwargs:
            for mine, other in (args, args[::-1]):
                if isinstance(mine, Tensor) and isinstance(other, Tensor) and mine.dtype == other.dtype and _alone(mine):
                    return mine.add_(other)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device:
                self._add(leaf, f"{func} {tuple(leaf.shape)}", None)
        return out

    def restart(self) -> None:
        """Forget the peak, not what is there."""
        self.peak = self.now

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
            self.peak = self.now
            self._at_peak = list(self._alive.values())

    def _remove(self, place: int) -> None:
        self.now -= self._alive.pop(place)[0]

    def table(self, rows: int = 12) -> str:
        """The largest of what was there at the peak, GB by operation and shape."""
        found: Counter[str] = Counter()
        for size, name in self._at_peak:
            found[name] += size
        return "\n".join(f"{size / 1e9:9.3f}  {name}" for name, size in found.most_common(rows))


def _alone(gradient: Tensor) -> bool:
    if not torch._prims_common.is_non_overlapping_and_dense_or_false(gradient):
        return False
    return (gradient._use_count(), torch._C._storage_Use_Count(gradient.untyped_storage()._cdata)) == ALONE  # type: ignore[attr-defined]
