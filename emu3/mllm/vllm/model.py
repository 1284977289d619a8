"""`Emu3ForCausalLM` for vLLM: in shape and in its tensors' names it is Llama, biases and a shared head included."""

from __future__ import annotations

from vllm.model_executor.models.llama import LlamaForCausalLM


class Emu3ForCausalLM(LlamaForCausalLM):
    """The language model over text ids and visual codes."""
