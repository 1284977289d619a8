"""What `start_engine` asks of vLLM on an H100, found on a CPU: `python vllm_on_a_gpu.py RANKS` prints JSON.

vLLM's own code resolves the arguments for a platform that says that it is one; only the engine is not made. It takes a
process of its own, because the platform is put in place of the one that vLLM's modules have.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from typing import Any

import torch
from vllm_world import world_model

from emu3.mllm.vllm import llm_engine


def pretend() -> None:
    """Every module of vLLM that is imported from now on, or was, sees an H100 with Triton."""
    import vllm.config
    import vllm.engine.arg_utils
    from vllm import platforms

    for library in ("_C_stable_libtorch", "_moe_C_stable_libtorch"):  # the CUDA build's, imported for their operators
        sys.modules[f"vllm.{library}"] = types.ModuleType(library)
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class H100(NonNvmlCudaPlatform):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(9, 0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 * 2**30

        @classmethod
        def device_count(cls) -> int:
            return 2

        def is_sleep_mode_available(self) -> bool:
            return True

        def is_cumem_allocator_available(self) -> bool:
            return True

    platform: Any = H100()
    platforms._current_platform = platform
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm") and hasattr(module, "current_platform"):
            module.current_platform = platform
    vllm.config.vllm.HAS_TRITON = True
    # What it finds out about our model's class it keeps for the next start, with code that needs the CUDA build.
    from vllm.model_executor.models.registry import _LazyRegisteredModel

    _LazyRegisteredModel._save_modelinfo_to_cache = lambda *_: None  # type: ignore[method-assign]


def resolved() -> dict[str, Any]:
    """The finished config that the engine would be made of."""
    from vllm.v1.engine.llm_engine import LLMEngine

    class Enough(Exception):
        pass

    found: list[Any] = []

    def stop(config: Any, **options: Any) -> None:
        found.extend((config, options))
        raise Enough

    LLMEngine.from_vllm_config = stop  # type: ignore[method-assign, assignment]
    settings = llm_engine.VllmSettings(torch.bfloat16, max_sequences=96, memory_share=0.3, sleep=True)
    with contextlib.suppress(Enough):
        llm_engine.start_engine(world_model().config, settings, torch.device("cuda", 1))
    config, options = found
    from vllm.v1.executor.abstract import Executor

    return {
        "options": options,
        "v2": config.use_v2_model_runner,
        "async": config.scheduler_config.async_scheduling,
        "processors": config.model_config.logits_processors,
        "sleep": [config.model_config.enable_sleep_mode, config.model_config.enable_cumem_allocator],
        "sleep_backend": config.model_config.sleep_mode_backend,
        "device": str(config.device_config.device),
        "memory_share": config.cache_config.gpu_memory_utilization,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "head": str(config.model_config.head_dtype),
        "dtype": str(config.model_config.dtype),
        "logprobs": config.model_config.logprobs_mode,
        "sequences": config.scheduler_config.max_num_seqs,
        "positions": config.model_config.max_model_len,
        "executor": Executor.get_class(config).__name__,
        "eager": config.model_config.enforce_eager,
    }


if __name__ == "__main__":
    pretend()
    ranks = int(sys.argv[1])
    llm_engine._ranks = lambda: ranks
    print(json.dumps(resolved()))
