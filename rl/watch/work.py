"""Seconds that a step will take on a GPU of a known kind, from its operations and the bytes that it reads.

Training is bound by arithmetic: 2 operations per parameter and token forward, twice that backward, at `USED` of the
peak. Decoding is bound by memory: every token of a lane's answer reads the weights and the key-value cache once, at
`READ` of the bandwidth. Both shares are what well-kept runs of this size reach, not measurements of this one. What a
judge takes is not known beforehand, and of a CPU nothing is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.config import Config
from rl.watch.memory import Sizes

USED, READ = 0.4, 0.6

GPUS = {
    # Part of the device's name: dense bf16 operations per second, bytes per second; from the makers' data sheets.
    "B200": (2250e12, 8.0e12),
    "H200": (989e12, 4.8e12),
    "H100 NVL": (835e12, 3.9e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "A100-SXM4-80GB": (312e12, 2.04e12),
    "A100 80GB PCIe": (312e12, 1.94e12),
    "A100": (312e12, 1.56e12),
    "L40S": (362e12, 0.864e12),
    "RTX 4090": (165e12, 1.01e12),
}


@dataclass(frozen=True)
class Seconds:
    """Of a step: at least `sampling`, about `training` with the reference's pass."""

    sampling: float
    training: float


def seconds(sizes: Sizes, config: Config, device: str) -> Seconds | None:
    """What a step takes on GPUs named `device`; None for an unknown one and for arithmetic other than bf16."""
    speeds = next((speeds for name, speeds in GPUS.items() if name in device), None)
    if speeds is None or config.compute.precision != "bf16":
        return None
    operations, bandwidth = speeds
    return Seconds(
        sampling=sampled_bytes(sizes, config) / (READ * bandwidth),
        training=trained_operations(sizes, config) / (USED * operations),
    )


def trained_operations(sizes: Sizes, config: Config) -> float:
    """Operations of a step's training on the rank that has most prompts, every group being trained on."""
    compute, group = config.compute, config.rollout.group_size
    rollouts = sizes.prompts_of_rank(config) * group
    forward = math.ceil(rollouts / compute.micro_batch) * forward_operations(sizes, config)
    # LoRA needs no gradients of the frozen matrices; a checkpointed layer goes forward twice.
    passes = (2 if config.lora else 3) + (1 if compute.gradient_checkpointing else 0)
    return forward * (passes * config.objective.updates + (1 if config.objective.kl else 0))


def forward_operations(sizes: Sizes, config: Config) -> float:
    """Operations of one forward pass of a micro-batch with shared prompts: matrices, attention, head."""
    rollouts = config.compute.micro_batch
    prompts = math.ceil(rollouts / config.rollout.group_size)
    p, a = sizes.prompt_tokens, sizes.answer_tokens
    seen = prompts * p * p / 2 + rollouts * (a * a / 2 + a * p)
    matrices = 2 * sizes.trunk * sizes.packed_tokens(config)
    attention = 4 * sizes.layers * sizes.queries * seen
    head = 2 * rollouts * a * sizes.width * sizes.vision.codebook_size
    return matrices + attention + head


def sampled_bytes(sizes: Sizes, config: Config) -> float:
    """Bytes read to decode a step's answers on the rank that has most, in bf16: weights at each token of a batch of
    prompts, the cache half full on the average."""
    rollout = config.rollout
    prompts = sizes.prompts_of_rank(config)
    at_once = prompts if rollout.engine == "vllm" else min(prompts, rollout.prompts_per_batch)
    weights = 2 * (sizes.trunk + sizes.width * sizes.vision.codebook_size)
    slots = at_once * (sizes.prompt_tokens + rollout.group_size * sizes.answer_tokens / 2)
    cache = 2 * 2 * sizes.layers * sizes.keys * slots
    return math.ceil(prompts / at_once) * sizes.answer_tokens * (weights + cache)
