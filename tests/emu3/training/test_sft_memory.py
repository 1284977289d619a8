"""The count of bytes of supervised fine-tuning, by hand; traces of the real modules are in `tests/fake_gpu`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import Emu3TextConfig

from emu3.training.activations import ModelSizes
from emu3.training.memory import Memory, sft_memory

TABLE = 184_622 * 4096
# 32 layers of 2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336, two tables, 65 norms of 4096.
PARAMETERS = 32 * 218_103_808 + 2 * TABLE + 65 * 4096


def of(rows: int = 4, **changes: Any) -> Memory:
    settings: dict[str, Any] = {"ranks": 4, "ranks_here": 4, "zero": 3, **changes}
    return sft_memory(Emu3TextConfig(), rows=rows, tokens=2163, targets=1063, **settings)


def test_zero_3_over_4_ranks_by_hand() -> None:
    """The published set-up: a quarter of 2 bytes of weights, of 12 of AdamW and of 4 of gradients, two buckets of
    4096^2; at the moment of the head its gradient in bf16, of one chunk of 181 tokens and of those before, and the
    gradients of the chunk's logits and of all hidden states, with head, embedding and a billion weights of layers
    gathered."""
    needed = of()
    assert needed.lasting == {
        "weights": PARAMETERS / 2,
        "optimizer": 3 * PARAMETERS,
        "gradients": PARAMETERS,
        "ZeRO buffers": 2 * 2 * 4096**2,
    }
    training = needed.phases["training"]
    assert training["head"] == 2 * 2 * TABLE + (4 + 2) * 181 * 184_622 + 2 * 4 * 1063 * 4096
    # 4 x 2,163 tokens wait with 32 inputs in bf16 and the last norm, 4 x 1,063 hidden states are scored.
    assert training["activations"] == 4 * (2163 * (32 * 2 + 6) + 1063 * 2) * 4096
    assert training["ZeRO buffers"] == 2 * (2 * TABLE + 1e9)
    assert needed.largest_phase == "training" and needed.total == pytest.approx(53.6e9, rel=0.01)


def test_rows_add_activations_alone() -> None:
    one, two = of(1), of(2)
    assert one.lasting == two.lasting
    before, after = one.phases["training"], two.phases["training"]
    assert after["activations"] == 2 * before["activations"]
    assert after["head"] - before["head"] == 2 * 1063 * 4096  # gradients of the hidden states
    assert after["ZeRO buffers"] == before["ZeRO buffers"]


def test_what_is_offloaded_lies_in_main_memory() -> None:
    """For all ranks of the machine: weights in bf16, master weights, moments, and two gradients in float32."""
    needed = of(offload=True)
    assert needed.lasting == {"ZeRO buffers": 2 * 2 * 4096**2}
    assert needed.host == {"weights": 2 * PARAMETERS, "optimizer": 20 * PARAMETERS}


def test_without_deepspeed_all_is_whole() -> None:
    """16 bytes per parameter, and DDP's buckets, which are the gradients once more."""
    needed = of(zero=0, ranks=2)
    assert needed.lasting == {"weights": 4 * PARAMETERS, "optimizer": 8 * PARAMETERS}
    training = needed.phases["training"]
    assert training["gradients"] == training["DDP's buckets"] == 4 * PARAMETERS
    assert "DDP's buckets" not in of(zero=0, ranks=1).phases["training"]
    assert training["bf16 copies"] == 2 * ModelSizes(Emu3TextConfig()).trunk


def test_lora_has_states_of_its_adapters_alone() -> None:
    ends = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    needed = of(lora_rank=64)
    assert needed.lasting["optimizer"] == 12 * 32 * 64 * ends / 4
    assert needed.lasting["weights"] == PARAMETERS / 2 and "head" not in needed.phases["training"]


def test_sft_counts_without_rl() -> None:
    """Guards the arrow between the packages: SFT's estimate is emu3's."""
    code = "import sys, emu3.training.memory; assert not [name for name in sys.modules if name.split('.')[0] == 'rl']"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=900)
