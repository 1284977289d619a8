"""What DeepSpeed holds on each of two ranks of a small policy, measured on CPUs, beside what is counted.

    PYTHONPATH=. python -m torch.distributed.run --standalone --nproc_per_node 2 tests/fake_gpu/shards.py

Prints a line of JSON for each moment of each setting: name, bytes of all tensors that DeepSpeed or a step made and that
are there on a rank, bytes counted. Sequences are short, so that activations are next to nothing; the sizes of buckets,
which are DeepSpeed's for 8B, are set for the model, and with it the largest tensor is larger than a bucket, as there.
What is offloaded stays in the same memory here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "common"), str(TESTS / "rl" / "watch")]

import deepspeed  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from peak import Peak  # noqa: E402
from sizes_of_emu3 import settings  # noqa: E402

from emu3.mllm.language_model import new_language_model  # noqa: E402
from emu3.mllm.layout import GridGrammar, TokenLayout  # noqa: E402
from emu3.training.activations import ModelSizes  # noqa: E402
from emu3.training.memory import Zero, held  # noqa: E402
from rl.logprobs import pack  # noqa: E402
from rl.rollout.engine import Prompt, Rollout  # noqa: E402
from rl.shared_prefix import ATTENTION  # noqa: E402
from rl.training.zero import ZeroTrainer  # noqa: E402

LAYOUT = TokenLayout(text_ranks=3700, codebook_size=64)
GRAMMAR = GridGrammar(LAYOUT, 4, 4, (1, 2, 3))
BUCKET = 1_000_000
SETTINGS: dict[str, dict[str, Any]] = {
    "ZeRO-2": {"zero": 2},
    "ZeRO-3": {"zero": 3},
    "ZeRO-2, offloaded optimizer": {"zero": 2, "offload_optimizer": True},
}


def with_small_buckets(initialize: Any) -> Any:
    """`deepspeed.initialize` with buckets of the model's size."""

    def started(**given: Any) -> Any:
        zero = given["config"]["zero_optimization"]
        zero["reduce_bucket_size"] = BUCKET
        if zero["stage"] == 3:
            zero |= {"stage3_max_live_parameters": 2 * BUCKET, "stage3_max_reuse_distance": 2 * BUCKET}
            zero |= {"stage3_prefetch_bucket_size": BUCKET // 10, "stage3_param_persistence_threshold": 300}
        return initialize(**given)

    return started


def moments(compute: dict[str, Any], accelerator: Accelerator) -> dict[str, tuple[int, float]]:
    """Measured and counted bytes at the peaks of a backward pass and of a step, and after it."""
    config = settings(
        compute={"gradient_checkpointing": True, "reference": "resident", **compute}, objective={"kl": 0.0}
    )
    model = new_language_model(
        LAYOUT, hidden_size=256, layers=8, heads=4, kv_heads=4, ffn_size=896, max_positions=512, seed=0
    ).to(torch.bfloat16)
    model.set_attn_implementation(ATTENTION)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    sizes = ModelSizes(model.config)
    codes = np.zeros((4, 4), np.uint16)
    tokens = [LAYOUT.boi, *GRAMMAR.completion(codes.tolist())]
    rollout = Rollout(tokens, np.zeros(len(tokens), np.float32), codes, None)
    rows = [(Prompt("", tuple(range(5)), GRAMMAR, codes, "", None), rollout)] * 2

    measured: dict[str, int] = {}
    with Peak("cpu") as peak:
        trainer = ZeroTrainer(model, config, accelerator)
        for _ in range(2):  # the first step makes the optimizer's state
            for last in (False, True):
                peak.restart()
                trainer.backward(trainer.score(pack(rows, "grammar", 0))[0].sum(), last=last)
                measured["backward pass"] = peak.peak
            peak.restart()
            trainer.step(1e-3)
            measured |= {"step": peak.peak, "between steps": peak.now}

    setup = Zero(
        config.compute.zero, accelerator.num_processes, config.compute.offload_optimizer, bucket=BUCKET, live=2 * BUCKET
    )
    holding = held(sizes, setup, bf16=True)
    lasting = sum(holding.lasting.values()) + sum(holding.host.values())
    backward = lasting + sum(holding.backward.values()) + holding.reducing
    counted = {"backward pass": backward, "step": lasting + sum(holding.step.values())}
    if not setup.offload_optimizer:  # there what is summed over micro-batches goes in between
        counted["between steps"] = lasting
    return {name: (measured[name], counted[name]) for name in counted}


def main() -> None:
    deepspeed.initialize = with_small_buckets(deepspeed.initialize)
    accelerator = Accelerator(cpu=True)
    for setting, compute in SETTINGS.items():
        for moment, (measured, counted) in moments(compute, accelerator).items():
            row = {"name": f"{setting}, {moment}", "traced": measured, "counted": counted}
            accelerator.print(json.dumps(row), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
