"""The count of bytes: by hand at full size, and against what torch keeps and the system gives at a small one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_step
from sizes_of_emu3 import VISION_PARAMETERS, emu3, settings
from transformers import Emu3ForCausalLM

from emu3.mllm.language_model import new_language_model
from emu3.tokenizer.blocks import StillVQConfig
from emu3.training.memory import Memory
from rl.config import Config
from rl.shared_prefix import ATTENTION, SharedPrefix, final_states
from rl.watch.costs import KEPT_ASLEEP, Sizes, memory, vllm_memory

# 32 layers of 2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336, two tables of 184,622 x 4096, 65 norms of 4096.
ROOT = Path(__file__).parents[3]
PARAMETERS = 32 * 218_103_808 + 2 * 756_211_712 + 65 * 4096


def of(config: Config, ranks: int = 4) -> Memory:
    return memory(emu3(ranks), config, gpu=True, device_bytes=80e9, ranks_here=ranks)


def test_the_full_model_has_its_parameters() -> None:
    with torch.device("meta"):
        model = Emu3ForCausalLM(emu3().model)
    assert emu3().parameters == PARAMETERS == sum(parameter.numel() for parameter in model.parameters())


def test_zero_2_over_4_ranks_by_hand() -> None:
    """8.49 billion weights in bf16 whole; a quarter of 12 bytes of AdamW and of 4 bytes of gradients; one copy of the
    reference over all."""
    needed = of(settings())
    assert needed.largest_phase == "training"
    peak = needed.peak
    assert peak["weights"] == 2 * PARAMETERS == pytest.approx(17.0e9, rel=0.01)
    assert peak["optimizer"] == 3 * PARAMETERS == pytest.approx(25.5e9, rel=0.01)
    assert peak["gradients"] == PARAMETERS
    assert peak["reference"] == PARAMETERS / 2
    assert peak["image tokenizer"] == 4 * VISION_PARAMETERS
    # The moment is when the head's gradient, 184,622 x 4096 in bf16, has been made and is converted to float32 beside a
    # bucket of 5e8: 1,100 + 8 x 1,060 tokens wait with 32 inputs of 4096 in bf16 and a last norm of 4 + 2 bytes, 8 x
    # 1,024 hidden states are scored.
    assert peak["activations"] == 9580 * (32 * 2 * 4096 + 6 * 4096) + 8 * 1024 * 2 * 4096
    assert peak["ZeRO buffers"] == 2 * 5e8 + (2 + 4) * 184_622 * 4096
    assert "head" not in peak
    assert needed.total == pytest.approx(sum(peak.values())) == pytest.approx(71e9, rel=0.02)


def test_the_moments_of_a_pass_by_hand() -> None:
    """Of the last layer, two norms of 4 + 2 bytes, two inputs, queries and result of 4096, keys and values of 1024, 32
    logsums, four times 14,336 that were kept, two more in the backward pass, and the stream's gradient; of the head
    32,768 rows, whose gradient becomes one of all ids, and that of the hidden states."""
    moments = emu3().micro_batch(settings()).moments()
    layer = 2 * 6 * 4096 + 2 * 2 * 4096 + 2 * (2 * 4096 + 2 * 1024) + 4 * 32 + 6 * 2 * 14336 + 2 * 4096
    assert moments["the last layer"] == {"activations": 9580 * (32 * 2 * 4096 + layer)}
    assert moments["the head"]["head"] == 2 * 4096 * (32768 + 184_622 + 8 * 1024)


@pytest.mark.parametrize(
    ("changes", "part", "bytes_per_parameter"),
    [
        ({"compute": {"zero": 3}}, "weights", 0.5),
        ({"compute": {"zero": 0, "reference": "resident"}}, "weights", 4),
        ({"compute": {"zero": 0, "reference": "resident"}}, "optimizer", 8),
        ({"compute": {"zero": 0, "reference": "resident"}}, "gradients", 4),
        ({"compute": {"zero": 0, "reference": "resident"}}, "reference", 4),
        ({"compute": {"reference": "resident"}}, "reference", 2),
        ({"compute": {"precision": "fp32"}}, "weights", 4),
        ({"compute": {"precision": "fp32"}}, "optimizer", 3),
    ],
)
def test_bytes_per_parameter(changes: dict[str, Any], part: str, bytes_per_parameter: float) -> None:
    config = settings(**changes)
    assert {**of(config).lasting, **of(config).phases["training"]}[part] == bytes_per_parameter * PARAMETERS


def test_what_lies_in_main_memory_is_not_on_the_device() -> None:
    needed = of(settings(compute={"offload_optimizer": True, "reference": "offloaded"}))
    assert "optimizer" not in needed.lasting and "reference" not in needed.lasting
    # 12 of AdamW, 8 of gradients that arrive and that are summed, 2 of weights on their way back; on each rank the
    # largest gradient on its way.
    assert needed.host["optimizer"] == 22 * PARAMETERS + 4 * 2 * 184_622 * 4096
    assert needed.host["reference"] == 4 * 2 * PARAMETERS
    assert needed.lasting["ZeRO buffers"] == 2 * 184_622 * 4096
    # It visits the device for its log-probabilities.
    assert needed.phases["the reference's pass"]["reference"] == 2 * PARAMETERS
    assert "reference" not in needed.phases["training"]


def test_no_kl_and_no_adapter_need_no_reference() -> None:
    adapter = settings(lora={"rank": 8}, compute={"reference": "adapter_off"})
    for config in (settings(objective={"kl": 0.0}), adapter):
        assert not any("reference" in parts for parts in (of(config).lasting, *of(config).phases.values()))
    # Eight columns and rows of each of seven matrices.
    ends = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert of(adapter).lasting["optimizer"] == 12 * 32 * 8 * ends / 4


@pytest.mark.parametrize("sleep", [True, False])
def test_vllm_is_awake_while_images_are_decoded(sleep: bool) -> None:
    """That phase was counted without it: "73 of 80 GB" for 77."""
    needed = of(settings(rollout={"engine": "vllm", "vllm": {"memory_share": 0.3, "sleep": sleep}}))
    for phase in ("sampling", "decoding"):
        assert needed.lasting["vLLM"] + needed.phases[phase]["vLLM"] == pytest.approx(24e9)
    assert "decoding images" in needed.phases["decoding"]
    assert needed.lasting["vLLM"] == (KEPT_ASLEEP if sleep else pytest.approx(24e9))


def test_on_a_cpu_vllm_takes_what_is_of_use() -> None:
    """The whole share was charged, 15.5 GB where 1.03 were taken: the cache ends where every completion has its
    longest."""
    config = settings(
        rollout={"engine": "vllm", "prompts_per_step": 4, "group_size": 2, "vllm": {"memory_share": 0.9}},
        compute={"precision": "fp32", "zero": 0, "reference": "resident"},
    )
    model = emu3(1).model
    model.num_hidden_layers, model.max_position_embeddings = 1, 64
    sizes = Sizes(model, StillVQConfig(), 0, ranks=1, prompt_tokens=20, completion_tokens=40)
    vllm = vllm_memory(sizes, config, gpu=False, device_bytes=100e9)
    # 8 completions of 64 positions and a block of 32, 2 x 1,024 numbers of 4 bytes.
    assert vllm is not None and vllm.cache == (8 * 64 + 32) * 2 * 1024 * 4
    needed = memory(sizes, config, gpu=False, device_bytes=100e9, ranks_here=1)
    assert needed.lasting["vLLM"] == vllm.weights + vllm.work + vllm.cache < 90e9
    scarce = vllm_memory(sizes, config, gpu=False, device_bytes=1e6)
    assert scarce is not None and scarce.cache == 0.9e6


@pytest.mark.parametrize(("think", "least"), [(0, 0.30), (512, 0.33)])
def test_keys_and_values_are_counted(think: int, least: float) -> None:
    """A share whose cache is too small makes vLLM throw completions out and compute them again, without a word. By
    hand, on 4 GPUs of 80 GB: 4 prompts of 1,088 tokens in shared blocks and 32 completions with the prompt's last 12,
    in blocks of 16; 131,072 bytes for each, beside 17.0 GB of weights and 1.65 of work."""
    completion = 1060 + think
    sizes = emu3(completion_tokens=completion)
    found = {}
    for share in (least - 0.01, least):
        config = settings(rollout={"engine": "vllm", "think_tokens": think, "vllm": {"memory_share": share}})
        vllm = vllm_memory(sizes, config, gpu=True, device_bytes=80e9)
        assert vllm is not None and vllm.token_bytes == 131_072
        assert vllm.tokens_at_once == 4 * 1088 + 32 * -(-(12 + completion) // 16) * 16
        assert vllm.starts and vllm.least_share(80e9) == pytest.approx(least)
        found[share] = vllm.preempts
    assert list(found.values()) == [True, False]


def test_sequences_that_wait_need_no_room() -> None:
    config = settings(rollout={"engine": "vllm", "vllm": {"max_sequences": 8}})
    vllm = vllm_memory(emu3(), config, gpu=True, device_bytes=80e9)
    assert vllm is not None and vllm.tokens_at_once == 1088 + 8 * 1072


def test_the_local_cache_has_a_slot_for_every_token() -> None:
    """4 prompts of a rank, 1,100 + 8 x 1,060 slots, 32 layers of keys and values of 1,024 in bf16."""
    cache = 4 * (1100 + 8 * 1060) * 32 * 2 * 1024 * 2
    assert cache < of(settings()).phases["sampling"]["sampling"] < 1.2 * cache
    assert of(settings(rollout={"prompts_per_batch": 1})).phases["sampling"]["sampling"] < 0.3 * cache


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("precision", "zero"), [("fp32", 0), ("bf16", 0), ("bf16", 2)])
def test_activations_are_what_torch_keeps(precision: str, zero: int, checkpointing: bool) -> None:
    """Every tensor that the backward pass of the trunk will read, each storage once, but for the weights themselves.

    5%: what does not belong to a layer (final norm, rotary angles) is rounded.
    """
    compute = {"precision": precision, "zero": zero, "gradient_checkpointing": checkpointing, "reference": "resident"}
    config = settings(compute=compute)
    model = new_language_model(
        training_step.LAYOUT, hidden_size=256, layers=6, heads=8, kv_heads=2, ffn_size=896, max_positions=512, seed=0
    )
    model.set_attn_implementation(ATTENTION)
    if zero:
        model = model.to(torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    shared = SharedPrefix((110,), ((106,) * 8,), torch.device("cpu"))
    ids = torch.arange(110 + 8 * 106) % 300
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    matrices = {tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim == 2}
    kept: dict[int, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}  # of the weights, by autocast

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            of_weight = {tuple(tensor.shape), tuple(tensor.shape[::-1])} & matrices
            (copies if of_weight else kept)[place] = tensor
        return tensor

    arithmetic = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), arithmetic:
        final_states(model, ids, shared)
    vision = StillVQConfig(codebook_size=training_step.LAYOUT.codebook_size)
    sizes = Sizes(model.config, vision, 0, 1, prompt_tokens=110, completion_tokens=106)
    micro_batch = sizes.micro_batch(config)
    counted = micro_batch.inputs * len(ids) + (4 + micro_batch.stream) * 256 * len(ids)  # and the last norm's
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert total == pytest.approx(counted, rel=0.05)
    if not checkpointing:
        needed = micro_batch.moments()["the forward pass"]
        assert sum(tensor.nbytes for tensor in copies.values()) == needed.get("bf16 copies", 0)


def test_a_training_step_takes_what_was_counted() -> None:
    """Peak memory of a process in which a model of 19 million weights takes two steps, beyond what it held before.

    8% for small tensors and the work of kernels: a part of the count that was forgotten or doubled would make 10% or
    more.
    """
    # Scripts that train on a CPU tell malloc to keep what is freed, and to take huge pages.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, training_step.__file__],
        env={**inherited, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    measured = [float(text) for text in done.stdout.splitlines()[-2:]]
    sizes = Sizes(
        training_step.small_model().config,
        StillVQConfig(codebook_size=training_step.LAYOUT.codebook_size),
        vision_parameters=0,
        ranks=1,
        prompt_tokens=training_step.PROMPT_TOKENS,
        completion_tokens=training_step.COMPLETION_TOKENS,
    )
    for config, taken in zip(training_step.CONFIGS, measured, strict=True):
        needed = memory(sizes, config, gpu=False, device_bytes=1e9, ranks_here=1)
        training = {**needed.lasting, **needed.phases["training"]}
        del training["reserve"]
        assert taken == pytest.approx(sum(training.values()), rel=0.08)
