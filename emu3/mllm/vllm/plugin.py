"""Makes vLLM know the architecture of our checkpoints, in each of its processes, by an entry point of this package.

With it `vllm serve` and `vllm.LLM` load what `emu3.mllm.language_model.save_checkpoint` wrote.
"""

from __future__ import annotations

ARCHITECTURE = "Emu3ForCausalLM"


def register() -> None:
    """Add the architecture to vLLM's registry, once."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # By name: the class is imported where a model of it is made.
        ModelRegistry.register_model(ARCHITECTURE, "emu3.mllm.vllm.model:Emu3ForCausalLM")
