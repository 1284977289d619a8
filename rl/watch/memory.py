"""Memory of one rank of an RL run: what lies there all the time, and what the phases of a step need besides.

The policy in training is counted as SFT's is (`emu3.training.memory`, `emu3.training.activations`); here is what RL
has besides: the reference, the image tokenizer, and who samples.
"""

from __future__ import annotations

from emu3.tokenizer.codec import BATCH_PIXELS
from emu3.training.activations import Parts
from emu3.training.memory import Memory, Zero, gathered, held, training, weight_bytes, with_reserve
from rl.config import Config
from rl.watch.engine import KEPT_ASLEEP, engine
from rl.watch.sizes import Sizes, lora_rank

DECODE_BYTES = 24
"""Peak bytes per pixel and base channel while the image tokenizer decodes in float32: three tensors of the last level
but one, which has two times the base channels."""


def memory(sizes: Sizes, config: Config, *, gpu: bool, device_bytes: float, ranks_here: int) -> Memory:
    """The memory that a run needs.

    gpu: whether devices have memory of their own. device_bytes: of one, of which vLLM takes a share. ranks_here: of
    them on one machine.
    """
    compute, rollout, rank = config.compute, config.rollout, lora_rank(config)
    bf16 = compute.precision == "bf16"
    setup = Zero(compute.zero, sizes.ranks, compute.offload_optimizer and gpu)
    holding = held(sizes, setup, bf16, rank)
    weight = weight_bytes(setup, bf16)
    model = weight * sizes.parameters

    lasting = {**holding.lasting, "image tokenizer": 4.0 * sizes.vision_parameters}
    host: Parts = {name: ranks_here * size for name, size in holding.host.items()}
    host["loading the model"] = ranks_here * model if weight == 4 else 0
    micro_batch = sizes.micro_batch(config)
    scoring = larger(sizes.micro_batch(config, trained=False).forward())
    if config.objective.kl > 0 and compute.reference != "adapter_off":
        if compute.reference == "offloaded" and gpu:
            host["reference"] = ranks_here * model
            scoring["reference"] = model
        elif compute.reference == "sharded":
            lasting["reference"] = model / sizes.ranks
            scoring["ZeRO buffers"] = gathered(sizes, setup, weight)
        else:
            lasting["reference"] = model

    vllm = engine(sizes, config, gpu=gpu, device_bytes=device_bytes)
    awake: Parts = {}  # while answers are sampled and decoded
    if vllm is not None:
        asleep = KEPT_ASLEEP if rollout.vllm.sleep and gpu else vllm.bytes
        lasting["vLLM"] = asleep
        awake["vLLM"] = vllm.bytes - asleep
    else:
        if compute.zero == 3:
            awake["gathered weights"] = model - model / sizes.ranks
        if micro_batch.casts:
            awake["bf16 copies"] = 2.0 * min(sizes.trainable(rank), sizes.trunk)
    phases = {
        "sampling": {**awake, **({} if vllm else {"sampling": sampling(sizes, config)})},
        "decoding": {**awake, "decoding images": decoding(sizes, config)},
        "the reference's pass": scoring,
        "training": training(holding, micro_batch),
        "the optimizer's step": holding.step,
    }
    return with_reserve(lasting, phases, host, gpu=gpu)


def larger(parts: Parts) -> Parts:
    """Of parts that are not there at once the larger alone."""
    name = max(parts, key=lambda part: parts[part])
    return {name: parts[name]}


def sampling(sizes: Sizes, config: Config) -> float:
    """The local engine: a key-value cache with a slot for every token of every lane, and beside it the larger of the
    pass over the prompts and of one layer's keys and values, repeated for each query head, at the last tokens."""
    rollout, element = config.rollout, 2 if config.compute.precision == "bf16" else 4
    stream = element if config.compute.zero else 4  # rotated keys have its precision
    prompts = min(rollout.prompts_per_batch, sizes.prompts_of_rank(config))
    slots = prompts * (sizes.prompt_tokens + rollout.group_size * sizes.answer_tokens)
    cache = slots * sizes.layers * sizes.keys * (stream + element)
    reading = prompts * sizes.prompt_tokens * (3 * element * sizes.model.intermediate_size + 4 * stream * sizes.width)
    drawing = slots * sizes.queries * 2 * element if sizes.queries > sizes.keys else 0
    return cache + max(reading, drawing)


def decoding(sizes: Sizes, config: Config) -> float:
    pixels = (config.rollout.group_size + 1) * sizes.answer_tokens * sizes.vision.factor**2
    return DECODE_BYTES * sizes.vision.base_channels * min(pixels, BATCH_PIXELS)
