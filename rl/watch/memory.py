"""Memory of one rank: what lies there all the time, and what the phases of a step need besides.

Bytes per parameter: whole on each rank, 4 of weight, 4 of gradient and 8 of AdamW's moments, all float32, and 2 of the
copy that autocast makes for bf16; with ZeRO (Rajbhandari et al., arXiv:1910.02054) over N ranks, weights in the
precision of the arithmetic, whole (stage 2) or 1/N of them (stage 3), and 1/N of float32 gradients, master weights and
moments.

Bytes per token and layer that the backward pass needs are counted tensor by tensor from transformers' Emu3 layer, as
Korthikanti et al. (arXiv:2205.05198) do for GPT; with gradient checkpointing one layer's, and each layer's input.

What an allocator loses between blocks is no count: a reserve stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu3.tokenizer.codec import BATCH_PIXELS
from emu3.training.head import CHUNK_BYTES
from rl.config import Config
from rl.watch.sizes import Sizes

ZERO_BUCKET = 5 * 10**8
"""Elements that DeepSpeed gathers or reduces at once, by default."""
DECODE_BYTES = 24
"""Peak bytes per pixel and base channel while the image tokenizer decodes in float32, measured at full size."""
GPU_RESERVE, CPU_RESERVE = (2e9, 0.05), (0.6e9, 0.3)
"""Bytes of libraries, contexts and communication, and what an allocator loses between blocks, as a share of all blocks.
Measured for a CPU (glibc's malloc: 0.28 to 0.30), rules of thumb for a GPU."""

Parts = dict[str, float]
"""Bytes by what they are for."""


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
        return {**self.lasting, **self.phases[self.largest_phase]}

    @property
    def total(self) -> float:
        return sum(self.peak.values())


def memory(sizes: Sizes, config: Config, *, gpu: bool, device_bytes: float, ranks_here: int) -> Memory:
    """The memory that a run needs.

    gpu: whether devices have memory of their own. device_bytes: of one, of which vLLM takes a share. ranks_here: of
    them on one machine.
    """
    compute, sampling = config.compute, config.rollout
    zero, bf16 = compute.zero, compute.precision == "bf16"
    weight = 2 if bf16 and zero else 4
    model = weight * sizes.parameters
    trainable = sizes.trainable(config)
    shards = sizes.ranks if zero else 1
    # Where weights are sharded, those of the layers at work are gathered.
    gathered = min(model, 2 * weight * ZERO_BUCKET)
    host: Parts = {"loading the model": ranks_here * model if weight == 4 else 0}

    lasting: Parts = {"weights": model / (shards if zero == 3 else 1)}
    state = (12 if zero else 8) * trainable / shards
    if compute.offload_optimizer and gpu:
        host["optimizer"] = ranks_here * state
    else:
        lasting["optimizer"] = state
    reference = config.objective.kl > 0 and compute.reference != "adapter_off"
    if reference and compute.reference == "offloaded" and gpu:
        host["reference"] = ranks_here * model
    elif reference:
        lasting["reference"] = model / (shards if compute.reference == "sharded" else 1)
    lasting["image tokenizer"] = 4 * sizes.vision_parameters

    # Autocast keeps its copies of what is trained; of what is frozen, as long as a backward pass needs them.
    casts = bf16 and not zero
    copies = 2 * min(trainable, sizes.trunk) if casts else 0
    frozen_copies = 2 * sizes.trunk if casts and config.lora and not compute.gradient_checkpointing else 0
    tokens = sizes.packed_tokens(config)
    train: Parts = {
        "gradients": 4 * trainable / shards,
        "activations": activations(sizes, config) * tokens,
        "head": _head(sizes, config, weight),
    }
    if casts:
        train["bf16 copies"] = copies + frozen_copies
    if zero:
        train["ZeRO buffers"] = min(weight * trainable, weight * ZERO_BUCKET) + (gathered if zero == 3 else 0)
    step: Parts = {"gradients": 4 * trainable / shards}
    if not zero and sizes.ranks > 1:
        step["sum of gradients"] = 4 * trainable
    scoring: Parts = {"activations": layer_activations(sizes, config) * tokens, "head": _head(sizes, config, 0)}
    if reference and compute.reference == "offloaded" and gpu:
        scoring["reference"] = model
    elif reference and compute.reference == "sharded":
        scoring["ZeRO buffers"] = gathered

    sample: Parts = {}
    if sampling.engine == "vllm":
        share = config.rollout.vllm.memory_share * device_bytes
        (sample if config.rollout.vllm.sleep and gpu else lasting)["vLLM"] = share
    else:
        if zero == 3:
            sample["gathered weights"] = model - lasting["weights"]
        if casts:
            sample["bf16 copies"] = copies
        sample["sampling"] = _sampling(sizes, config)
    decode: Parts = {"decoding pictures": _decoding(sizes, config)}

    phases = {
        "sampling": sample,
        "decoding": decode,
        "the reference's pass": scoring,
        "training": train,
        "the optimizer's step": step,
    }
    for phase in phases.values():
        held = sum(lasting.values()) + sum(phase.values())
        base, lost = GPU_RESERVE if gpu else CPU_RESERVE
        phase["reserve"] = base + lost * held
    return Memory(lasting, phases, host)


def activations(sizes: Sizes, config: Config) -> float:
    """Bytes per token that a forward pass of the trunk leaves for the backward pass, at its peak."""
    layer, stream = layer_activations(sizes, config), _stream(config) * sizes.width
    end = stream + 4 * sizes.width  # the last norm
    if config.compute.gradient_checkpointing:
        return sizes.layers * stream + layer + end
    return sizes.layers * layer + end


def _stream(config: Config) -> int:
    """Bytes of a figure in the residual stream, which has the precision of the weights."""
    return 2 if config.compute.zero and config.compute.precision == "bf16" else 4


def layer_activations(sizes: Sizes, config: Config) -> float:
    """Bytes per token that one layer leaves for the backward pass."""
    compute = config.compute
    element, stream = (2 if compute.precision == "bf16" else 4), _stream(config)
    casts = element != stream
    # Each of two norms: its input in float32, and its result before the gain.
    norms = 2 * (4 + stream) * sizes.width
    # Inputs of q, k, v and of gate, up: one tensor for each group, or under autocast a copy for each matrix.
    inputs = (5 if casts else 2) * element * sizes.width
    attention = element * (2 * sizes.queries + 2 * sizes.keys) + 4 * sizes.model.num_attention_heads
    if compute.attention == "eager":
        softmax = 4 if element == 4 else 6
        attention += softmax * sizes.model.num_attention_heads * sizes.packed_tokens(config)
    mlp = 4 * element * sizes.model.intermediate_size
    return norms + inputs + attention + mlp


def _head(sizes: Sizes, config: Config, weight: int) -> float:
    """A chunk of logits with its softmax, exponentials and gradient, and the gradient of the head before it is added.

    weight: bytes of a weight, 0 without a backward pass.
    """
    logits = 4 * config.compute.micro_batch * sizes.answer_tokens * sizes.model.vocab_size
    return 4 * min(CHUNK_BYTES, logits) + 2 * weight * sizes.vocabulary


def _sampling(sizes: Sizes, config: Config) -> float:
    """The local engine: a key-value cache with a slot for every token of every lane, and the pass over the prompts."""
    rollout, element = config.rollout, 2 if config.compute.precision == "bf16" else 4
    prompts = min(rollout.prompts_per_batch, sizes.prompts_of_rank(config))
    slots = prompts * (sizes.prompt_tokens + rollout.group_size * sizes.answer_tokens)
    # Rotated keys have the precision of the residual stream.
    cache = slots * sizes.layers * sizes.keys * (_stream(config) + element)
    mlp = 3 * element * sizes.model.intermediate_size
    return cache + prompts * sizes.prompt_tokens * (mlp + 4 * _stream(config) * sizes.width)


def _decoding(sizes: Sizes, config: Config) -> float:
    pixels = (config.rollout.group_size + 1) * sizes.answer_tokens * sizes.vision.factor**2
    return DECODE_BYTES * sizes.vision.base_channels * min(pixels, BATCH_PIXELS)
