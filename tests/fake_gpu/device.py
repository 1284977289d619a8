"""A CUDA device without a GPU: fake tensors, which have shapes and dtypes but no numbers, on `cuda:0` of a CPU build.

`start` builds and loads `no_device.cpp`, has to come before torch is imported, and changes the whole process: tests run
it in one of their own. The CPU build lacks what decides among CUDA kernels, so that is said here as a CUDA build does:
which attention kernel a call takes, and that `silu_backward` is one kernel. Numbers are never computed.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode

SOURCE = Path(__file__).with_name("no_device.cpp")
_kept: list[Any] = []  # a torch.library.Library takes its kernels back when it is collected


def start() -> FakeTensorMode:
    """The mode under which tensors on `cuda` are fake. Raises CalledProcessError if the compiler fails."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_folder = Path(spec.origin).parent
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "no_device.so"
        libraries = torch_folder / "lib"
        command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder / 'include'}", str(SOURCE)]
        command += [f"-L{libraries}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}", "-o", str(built)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(built))

    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # it asks a device for its streams when imported
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Mode(FakeTensorMode):
        @property
        def avoid_device_init(self) -> bool:  # else it takes `is_available` below for a device with memory
            return True

    library = torch.library.Library("aten", "IMPL")
    library.impl("silu_backward", _unreached, "CUDA")
    _kept.append(library)
    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda *_: True  # type: ignore[assignment]
    torch.nn.functional.scaled_dot_product_attention = _attention

    from transformers import masking_utils

    # transformers reads the values of masks and positions where it can: no padding, no sequences packed in one row.
    masking_utils.is_tracing = lambda *_: False
    masking_utils.fast_all = lambda *_: True
    masking_utils.find_packed_sequence_indices = lambda *_: None
    return Mode(allow_non_fake_inputs=True)


def _unreached(*_: Any) -> Any:
    raise RuntimeError("a fake tensor lost its mode")


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What CUDA takes for half precision: flash, or the memory-efficient kernel where there is a mask."""
    import torch

    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    aten = torch.ops.aten
    if attn_mask is None:
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
    else:
        assert not enable_gqa  # that kernel wants as many key heads as query heads
        bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        out = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, False, dropout_p, is_causal, scale=scale
        )
    return out[0]  # type: ignore[no-any-return]
