"""What is said where vLLM cannot run, and what of a model goes into it. No vLLM is needed here."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from emu3.errors import UserError
from emu3.mllm.language_model import new_language_model
from emu3.mllm.layout import TokenLayout
from emu3.mllm.vllm.llm_engine import VllmSettings, _gpu_arguments, start_engine
from emu3.mllm.vllm.sampler import named_weights, seed_number, with_head


def tiny(**changes: Any) -> Any:
    sizes = {"hidden_size": 64, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_size": 32, "max_positions": 64}
    return new_language_model(TokenLayout(12, 16), **{**sizes, **changes}, seed=0)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*install_vllm_cpu\.sh"):
        start_engine(tiny().config, VllmSettings(torch.float32), torch.device("cpu"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_shared_head_is_named_once(tied: bool) -> None:
    """Guards a trap: vLLM packs the head on CPUs, and renews a shared one only if it is named besides."""
    model = tiny(tie_embeddings=tied)
    for weights in (named_weights(model), model.state_dict().items()):
        named = list(with_head(weights, tied=tied))
        assert sorted(name for name, _ in named) == sorted(model.state_dict())
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in named)


def test_seeds_are_apart_and_fit() -> None:
    seeds = {seed_number((run, step, sample)) for run in range(4) for step in range(4) for sample in range(4)}
    assert len(seeds) == 64 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_pass_has_room_for_a_token_of_each_answer() -> None:
    """vLLM refuses to start with fewer; and None, its own default, takes memory that the keys and values need."""
    settings = VllmSettings(torch.bfloat16, max_sequences=32, memory_share=0.3, sleep=True, max_batched_tokens=16)
    assert _gpu_arguments(settings) == {
        "gpu_memory_utilization": 0.3,
        "enable_sleep_mode": True,
        "max_num_batched_tokens": 32,
    }
    assert "max_num_batched_tokens" not in _gpu_arguments(VllmSettings(torch.bfloat16))
