"""What an RL run costs: memory of one rank, and seconds of a step on a GPU of a known kind.

Memory is what lies there all the time, and what the phases of a step need besides. The policy in training is counted as
SFT's is (`emu3.training.memory`, `emu3.training.activations`); here is how large a step is, and what RL has besides:
the reference, the image tokenizer, and who samples.

On a GPU vLLM takes `memory_share` of the whole device (its `gpu_memory_utilization`), refuses to start where less is
free, and gives the cache what weights, the work of its largest pass and its CUDA graphs leave. On a CPU the share
bounds the cache alone (`emu3.mllm.vllm.llm_engine`). Completions whose keys and values do not fit wait, or are thrown
out and computed again ("preempted"): slower, and without a word.

Time comes from a step's operations and the bytes that it reads. Training is bound by arithmetic: 2 operations per
parameter and token forward, twice that backward, at `USED` of the peak. Decoding is bound by memory: every token of a
lane's completion reads the weights and the key-value cache once, at `READ` of the bandwidth. Both shares are what
well-kept runs of this size reach, not measurements of this one. What a judge takes is not known beforehand, and of a
CPU nothing is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from emu3.mllm.vllm.llm_engine import CPU_BLOCK
from emu3.tokenizer.blocks import StillVQConfig
from emu3.tokenizer.codec import BATCH_PIXELS
from emu3.training.activations import ModelSizes, Parts, Pass, Scored
from emu3.training.memory import Memory, Zero, gathered, held, training, weight_bytes, with_reserve
from rl.config import Config

PROMPT_TOKENS, COMPLETION_TOKENS, FORCED_TOKENS = 1100, 1060, 36
"""Of an edit at the paper's 65,536 pixels with a sentence of instruction; forced ones have but one legal id."""


@dataclass(frozen=True)
class Sizes(ModelSizes):
    """vision_parameters: of the image tokenizer. ranks: processes that share a step, one per device. prompt_tokens,
    completion_tokens: of the longest; thinking counts as completion. forced_tokens: of a completion, those that are no
    codes and no thinking."""

    vision: StillVQConfig
    vision_parameters: int
    ranks: int
    prompt_tokens: int = PROMPT_TOKENS
    completion_tokens: int = COMPLETION_TOKENS
    forced_tokens: int = FORCED_TOKENS

    def packed_tokens(self, config: Config) -> int:
        """Tokens of a micro-batch: its completions, and each of their prompts once."""
        rollouts = config.compute.micro_batch
        prompts = math.ceil(rollouts / config.rollout.group_size)
        return prompts * self.prompt_tokens + rollouts * self.completion_tokens

    def prompts_of_rank(self, config: Config) -> int:
        """Prompts of a step on the rank that has most."""
        return config.rollout.prompts_of_rank(self.ranks)

    def micro_batch(self, config: Config, *, trained: bool = True) -> Pass:
        """What goes forward and back at once. trained: False is the reference, which goes forward."""
        compute = config.compute
        tokens, element = self.packed_tokens(config), 2 if compute.precision == "bf16" else 4
        return Pass(
            self,
            tokens,
            self._scored(config),
            element=element,
            stream=element if compute.zero else 4,
            checkpointing=trained and compute.gradient_checkpointing,
            lora_rank=lora_rank(config),
            seen=tokens if compute.attention == "eager" else 0,
        )

    def _scored(self, config: Config) -> tuple[Scored, ...]:
        """Codes among codes, and the rest as the scheme has it (`rl.logprobs`)."""
        rollouts, thinking, codebook = (
            config.compute.micro_batch,
            config.rollout.think_tokens,
            self.vision.codebook_size,
        )
        codes = Scored(rollouts * (self.completion_tokens - self.forced_tokens - thinking), codebook, sliced=True)
        text = self.model.vocab_size - codebook
        if config.objective.scheme == "split":
            return codes, Scored(rollouts * (self.forced_tokens + thinking), text, sliced=True)
        return (codes, Scored(rollouts * thinking, text, sliced=True, copied=True)) if thinking else (codes,)


def lora_rank(config: Config) -> int | None:
    return None if config.lora is None else config.lora.rank


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
    # Copied, then written while training goes on: by each rank a share of it, without sharding by rank 0.
    trainable = sizes.trainable(rank)
    copied = weight * (trainable if rank else sizes.parameters) + (12 if compute.zero else 8) * trainable
    if compute.save_in_background:
        host["a checkpoint's copy"] = copied * (ranks_here / sizes.ranks if compute.zero else 1)
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

    vllm = vllm_memory(sizes, config, gpu=gpu, device_bytes=device_bytes)
    awake: Parts = {}  # while completions are sampled and decoded
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
    slots = prompts * (sizes.prompt_tokens + rollout.group_size * sizes.completion_tokens)
    cache = slots * sizes.layers * sizes.keys * (stream + element)
    reading = prompts * sizes.prompt_tokens * (3 * element * sizes.model.intermediate_size + 4 * stream * sizes.width)
    drawing = slots * sizes.queries * 2 * element if sizes.queries > sizes.keys else 0
    return cache + max(reading, drawing)


def decoding(sizes: Sizes, config: Config) -> float:
    pixels = (config.rollout.group_size + 1) * sizes.completion_tokens * sizes.vision.factor**2
    return DECODE_BYTES * sizes.vision.base_channels * min(pixels, BATCH_PIXELS)


GPU_BLOCK = 16
KEPT_ASLEEP = 1e9
"""Bytes of CUDA graphs and libraries, which sleep does not give back; a rule of thumb."""


@dataclass(frozen=True)
class VllmMemory:
    """Bytes of vLLM on one device. cache: room for keys and values, below 0 where it cannot start. token_bytes: of one
    token's. tokens_at_once: of the completions that are sampled at once, each prompt once. sequence_tokens: of one
    completion with its prompt."""

    weights: float
    work: float
    cache: float
    token_bytes: int
    tokens_at_once: int
    sequence_tokens: int

    @property
    def bytes(self) -> float:
        return self.weights + self.work + max(0.0, self.cache)

    @property
    def cached_tokens(self) -> int:
        return max(0, int(self.cache // self.token_bytes))

    @property
    def starts(self) -> bool:
        return self.cached_tokens >= self.sequence_tokens

    @property
    def preempts(self) -> bool:
        return self.cached_tokens < self.tokens_at_once

    def least_share(self, device_bytes: float) -> float:
        """Share of a GPU that holds all completions, rounded up to a hundredth."""
        needed = self.weights + self.work + self.tokens_at_once * self.token_bytes
        return math.ceil(100 * needed / device_bytes) / 100


def vllm_memory(sizes: Sizes, config: Config, *, gpu: bool, device_bytes: float) -> VllmMemory | None:
    """None for the `local` one. device_bytes: of a GPU; on a CPU of main memory that is a rank's."""
    settings, rollout = config.rollout.vllm, config.rollout
    if rollout.engine != "vllm":
        return None
    element, model = 2 if config.compute.precision == "bf16" else 4, sizes.model
    token_bytes = 2 * sizes.layers * sizes.keys * element
    block = GPU_BLOCK if gpu else CPU_BLOCK
    completions = sizes.prompts_of_rank(config) * rollout.group_size
    at_once = min(settings.max_sequences, completions)
    # Whole blocks of a prompt are shared; its rest and the completion are each sequence's own.
    shared = sizes.prompt_tokens // block * block
    own = -(-(sizes.prompt_tokens - shared + sizes.completion_tokens) // block) * block
    needed = math.ceil(at_once / rollout.group_size) * shared + at_once * own
    weights = float(element * sizes.parameters)
    # A pass holds gate, up and their product, and the stream in several copies; the sampler logits in float32.
    per_token = element * (3 * model.intermediate_size + 6 * sizes.width)
    work = max(settings.max_batched_tokens, at_once) * per_token + 4 * 4.0 * at_once * model.vocab_size
    share = settings.memory_share * device_bytes
    if gpu:
        work += KEPT_ASLEEP
        cache = share - weights - work
    else:
        longest = -(-model.max_position_embeddings // block) * block
        cache = min(share, (at_once * longest + block) * token_bytes)
        work += 4 * sizes.vocabulary if element == 2 else 0  # the head in float32; on a GPU only its sums are
    return VllmMemory(weights, work, cache, token_bytes, needed, shared + own)


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
class StepSeconds:
    """Of a step: at least `sampling`, about `training` with the reference's pass."""

    sampling: float
    training: float


def step_time(sizes: Sizes, config: Config, device: str) -> StepSeconds | None:
    """What a step takes on GPUs named `device`; None for an unknown one and for arithmetic other than bf16."""
    speeds = next((speeds for name, speeds in GPUS.items() if name in device), None)
    if speeds is None or config.compute.precision != "bf16":
        return None
    operations, bandwidth = speeds
    return StepSeconds(
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
    p, c = sizes.prompt_tokens, sizes.completion_tokens
    seen = prompts * p * p / 2 + rollouts * (c * c / 2 + c * p)
    matrices = 2 * sizes.trunk * sizes.packed_tokens(config)
    attention = 4 * sizes.layers * sizes.queries * seen
    head = 2 * rollouts * c * sizes.width * sizes.vision.codebook_size
    return matrices + attention + head


def sampled_bytes(sizes: Sizes, config: Config) -> float:
    """Bytes read to decode a step's completions on the rank that has most, in bf16: weights at each token of a batch of
    prompts, the cache half full on the average."""
    rollout = config.rollout
    prompts = sizes.prompts_of_rank(config)
    at_once = prompts if rollout.engine == "vllm" else min(prompts, rollout.prompts_per_batch)
    weights = 2 * (sizes.trunk + sizes.width * sizes.vision.codebook_size)
    slots = at_once * (sizes.prompt_tokens + rollout.group_size * sizes.completion_tokens / 2)
    cache = 2 * 2 * sizes.layers * sizes.keys * slots
    return math.ceil(prompts / at_once) * sizes.completion_tokens * (weights + cache)
