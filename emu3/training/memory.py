"""Memory of one rank while a model of Emu3's shape is trained: what SFT and RL share, and SFT's own.

What holds the model is counted in bytes per parameter: whole on each rank, 4 of weight, 4 of gradient and 8 of AdamW's
moments, all float32; with ZeRO (Rajbhandari et al., arXiv:1910.02054) by DeepSpeed over N ranks as `held` says, its
buckets included. Those numbers are held against DeepSpeed on two ranks (`tests/emu3/training`). What a micro-batch
brings is `emu3.training.activations`.

What libraries take and what an allocator loses between blocks is no count: a reserve stands for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import Emu3TextConfig

from emu3.training.activations import ModelSizes, Parts, Pass, Scored

GPU_RESERVE, CPU_RESERVE = (2e9, 0.05), (0.6e9, 0.3)
"""Bytes of libraries, contexts and communication, and what an allocator loses between blocks, as a share of all blocks.
Measured for a CPU (glibc's malloc: 0.28 to 0.30), rules of thumb for a GPU."""
Stage = Literal[0, 2, 3]
GB = 1e9


@dataclass(frozen=True)
class Device:
    """What a rank runs on. name: of the GPU, None for a CPU. bytes: of its memory; on a CPU, this rank's share of the
    machine's. machine_bytes: of main memory, None if unknown. ranks_here: that share the machine."""

    name: str | None
    bytes: float
    machine_bytes: float | None
    ranks_here: int

    @property
    def place(self) -> str:
        return "device" if self.name else "process"


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device. lasting: there all the time. phases: what each phase of a step has besides.
    host: in the main memory of the machine, for all of its ranks."""

    lasting: Parts
    phases: dict[str, Parts]
    host: Parts

    @property
    def largest_phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> Parts:
        """The parts at the largest moment of a step."""
        return joined(self.lasting, self.phases[self.largest_phase])

    @property
    def total(self) -> float:
        return sum(self.peak.values())

    def lines(self, device: Device) -> list[str]:
        """What is printed before the start."""
        lines = [
            f"  memory per {device.place}: {_sum(self.peak)} of {gb(device.bytes)} GB, most in {self.largest_phase}",
        ]
        if device.name and any(self.host.values()):
            limit = "" if device.machine_bytes is None else f" of {gb(device.machine_bytes)}"
            lines.append(f"  main memory: {_sum(self.host)}{limit} GB")
        return lines


def with_reserve(lasting: Parts, phases: dict[str, Parts], host: Parts, *, gpu: bool) -> Memory:
    """Add to each phase what is no count. gpu: whether devices have memory of their own."""
    base, lost = GPU_RESERVE if gpu else CPU_RESERVE
    held = sum(lasting.values())
    reserved = {
        name: {**parts, "reserve": base + lost * (held + sum(parts.values()))} for name, parts in phases.items()
    }
    return Memory(lasting, reserved, host)


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed holds a model; its own defaults. stage: 0 for a whole copy on each rank, without DeepSpeed.

    bucket: elements whose gradients are reduced at once. buckets: 2 where communication overlaps with work in stage 3.
    live: elements of gathered weights that are kept for their next use. group: elements that AdamW takes at once.
    """

    stage: Stage
    ranks: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket: float = 5e8
    buckets: int = 1
    live: float = 1e9
    group: float = 1e9


@dataclass(frozen=True)
class Held:
    """What a rank holds of a model. lasting: all the time. backward: besides while gradients are made; reducing:
    besides that while the largest of them goes to the other ranks. step: besides the lasting in the optimizer's step.
    host: in main memory."""

    lasting: Parts
    backward: Parts
    reducing: float
    step: Parts
    host: Parts = field(default_factory=dict)


def weight_bytes(zero: Zero, bf16: bool) -> int:
    """Of a stored weight: DeepSpeed has float32 master weights beside those in bfloat16."""
    return 2 if bf16 and zero.stage else 4


def held(sizes: ModelSizes, zero: Zero, bf16: bool, lora_rank: int | None = None) -> Held:
    """With AdamW, and gradients that are summed in float32."""
    weight, trained, ranks = weight_bytes(zero, bf16), sizes.trainable(lora_rank), zero.ranks
    model, largest = weight * sizes.parameters, sizes.largest_trainable(lora_rank)
    if not zero.stage:
        gradients = {"gradients": 4.0 * trained}
        summed = {"sum of gradients": 4.0 * trained} if ranks > 1 else {}
        return Held({"weights": model, "optimizer": 8.0 * trained}, gradients, 0.0, {**gradients, **summed})

    share = trained / ranks
    lasting: Parts = {"weights": model / (ranks if zero.stage == 3 else 1), "optimizer": 12 * share}
    gradients = {"gradients": 4 * share}
    backward: Parts = {}
    host: Parts = {}
    if zero.offload_parameters:
        host["weights"] = lasting.pop("weights")
    if zero.offload_optimizer:
        # Master weights, moments, gradients of this micro-batch and summed ones; in stage 2 what
        # is on its way, gradients there and weights back.
        host["optimizer"] = lasting.pop("optimizer") + 8 * share
        if zero.stage == 2:
            host["optimizer"] += weight * (share + largest)
        gradients = {}
    bucket = zero.buckets * weight * zero.bucket
    if zero.stage == 2:
        backward = {**gradients, "ZeRO buffers": bucket}
        if zero.offload_optimizer:
            lasting["ZeRO buffers"] = weight * largest
        # The gradient, or a bucket of them, is converted for the partition that it belongs to.
        reducing = weight * largest + (4 if weight == 2 else 0) * max(min(zero.bucket, trained), largest)
        step: Parts = {**gradients, "gradients' norm": 8 * min(largest, share) if gradients else 0}
        return Held(lasting, backward, reducing, step, host)
    lasting |= {**gradients, "ZeRO buffers": bucket}
    backward["ZeRO buffers"] = gathered(sizes, zero, weight)
    # What is reduced lies flat once more, and this rank's share of it in float32.
    reducing = max(min(zero.bucket, trained), largest) * (weight + 4 / ranks)
    return Held(lasting, backward, reducing, {"gradients": 4 * min(zero.group, share)} if gradients else {}, host)


def gathered(sizes: ModelSizes, zero: Zero, weight: int) -> float:
    """Bytes of weights that stage 3 has whole at once: head and embedding, and layers for their next use."""
    return weight * min(float(sizes.parameters), 2 * sizes.vocabulary + zero.live)


def training(held: Held, micro_batch: Pass) -> Parts:
    """The largest moment of a training pass: what is there besides the lasting."""
    found = [joined(held.backward, parts) for parts in micro_batch.moments().values()]
    if held.reducing:
        waiting = {"activations": micro_batch.inputs * micro_batch.tokens + micro_batch.end}
        found.append(joined(held.backward, waiting, {"ZeRO buffers": held.reducing}))
    return max(found, key=lambda parts: sum(parts.values()))


def joined(*all_parts: Parts) -> Parts:
    """Parts of one name are added."""
    sums: Parts = {}
    for parts in all_parts:
        for name, size in parts.items():
            sums[name] = sums.get(name, 0.0) + size
    return sums


def sft_memory(
    model: Emu3TextConfig,
    *,
    rows: int,
    tokens: int,
    targets: int,
    ranks: int = 1,
    ranks_here: int = 1,
    zero: Stage = 0,
    offload: bool = False,
    bf16: bool = True,
    gradient_checkpointing: bool = True,
    lora_rank: int | None = None,
    gpu: bool = True,
) -> Memory:
    """What supervised fine-tuning takes under `scripts/zero3.json`, or `zero3_offload.json` with `offload`.

    rows: of a micro-batch on a device. tokens: of its longest row. targets: of these that are learned. ranks_here: on
    one machine. zero: 0 is the Trainer without DeepSpeed. lora_rank: None trains all weights.
    """
    sizes = ModelSizes(model)
    # The Trainer fills the "auto" of those files: the bucket from the width; stage 3 overlaps.
    setup = Zero(zero, ranks, offload, offload and zero == 3, bucket=sizes.width**2, buckets=2 if zero == 3 else 1)
    holding = held(sizes, setup, bf16, lora_rank)
    micro_batch = Pass(
        sizes,
        tokens=rows * tokens,
        scored=(Scored(rows * targets, model.vocab_size),),
        element=2 if bf16 else 4,
        stream=weight_bytes(setup, bf16),
        checkpointing=gradient_checkpointing,
        lora_rank=lora_rank,
    )
    backward = training(holding, micro_batch)
    if not zero and ranks > 1:
        backward["DDP's buckets"] = 4 * sizes.trainable(lora_rank)
    step = {name: size for name, size in holding.step.items() if name != "sum of gradients"}
    host = {name: ranks_here * size for name, size in holding.host.items()}
    return with_reserve(holding.lasting, {"training": backward, "the optimizer's step": step}, host, gpu=gpu)


def this_device(device: torch.device, ranks: int) -> Device:
    """The device of this process, one of `ranks`, which share the machine as far as the launcher says nothing else."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if device.type == "cpu":
        return Device(None, machine / ranks_here, machine, ranks_here)
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.name, float(properties.total_memory), machine, ranks_here)


def gb(number: float) -> str:
    """Such as `3.2` or `76`."""
    return f"{number / GB:.1f}" if number < 20 * GB else f"{number / GB:.0f}"


def _sum(parts: Parts) -> str:
    """`weights 17.0 + gradients 8.5 = 25.5`; parts that would be shown as 0.0 are only in the sum."""
    shown = [f"{name} {gb(number)}" for name, number in parts.items() if number >= 0.05 * GB]
    return " + ".join(shown) + (f" = {gb(sum(parts.values()))}" if len(shown) != 1 else "")
