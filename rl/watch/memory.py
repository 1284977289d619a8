"""Memory of one rank of an RL run: what lies there all the time, and what the phases of a step need besides.

The policy in training is counted as SFT's is (`emu3.training.memory`, `emu3.training.activations`); here is how large a
step is, and what RL has besides: the reference, the image tokenizer, and who samples.

On a GPU vLLM takes `memory_share` of the whole device (its `gpu_memory_utilization`), refuses to start where less is
free, and gives the cache what weights, the work of its largest pass and its CUDA graphs leave. On a CPU the share
bounds the cache alone (`emu3.mllm.vllm.engine`). Answers whose keys and values do not fit wait, or are thrown out and
computed again ("preempted"): slower, and without a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from emu3.mllm.vllm.engine import CPU_BLOCK
from emu3.tokenizer.codec import BATCH_PIXELS
from emu3.tokenizer.config import StillVQConfig
from emu3.training.activations import ModelSizes, Parts, Pass, Scored
from emu3.training.memory import Memory, Zero, gathered, held, training, weight_bytes, with_reserve
from rl.config import Config

PROMPT_TOKENS, ANSWER_TOKENS, FORCED_TOKENS = 1100, 1060, 36
"""Of an edit at the paper's 65,536 pixels with a sentence of instruction; forced ones have but one legal id."""


@dataclass(frozen=True)
class Sizes(ModelSizes):
    """vision_parameters: of the image tokenizer. ranks: processes that share a step, one per device. prompt_tokens,
    answer_tokens: of the longest; thinking counts as answer. forced_tokens: of an answer, those that are no codes and
    no thinking."""

    vision: StillVQConfig
    vision_parameters: int
    ranks: int
    prompt_tokens: int = PROMPT_TOKENS
    answer_tokens: int = ANSWER_TOKENS
    forced_tokens: int = FORCED_TOKENS

    def packed_tokens(self, config: Config) -> int:
        """Tokens of a micro-batch: its answers, and each of their prompts once."""
        rollouts = config.compute.micro_batch
        prompts = math.ceil(rollouts / config.rollout.group_size)
        return prompts * self.prompt_tokens + rollouts * self.answer_tokens

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
        codes = Scored(rollouts * (self.answer_tokens - self.forced_tokens - thinking), codebook, sliced=True)
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


GPU_BLOCK = 16
KEPT_ASLEEP = 1e9
"""Bytes of CUDA graphs and libraries, which sleep does not give back; a rule of thumb."""


@dataclass(frozen=True)
class Engine:
    """Bytes of vLLM on one device. cache: room for keys and values, below 0 where it cannot start. token_bytes: of one
    token's. wanted_tokens: of the answers that are sampled at once, each prompt once. sequence_tokens: of one answer
    with its prompt."""

    weights: float
    work: float
    cache: float
    token_bytes: int
    wanted_tokens: int
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
        return self.cached_tokens < self.wanted_tokens

    def least_share(self, device_bytes: float) -> float:
        """Share of a GPU that holds all answers, rounded up to a hundredth."""
        needed = self.weights + self.work + self.wanted_tokens * self.token_bytes
        return math.ceil(100 * needed / device_bytes) / 100


def engine(sizes: Sizes, config: Config, *, gpu: bool, device_bytes: float) -> Engine | None:
    """None for the `local` one. device_bytes: of a GPU; on a CPU of main memory that is a rank's."""
    settings, rollout = config.rollout.vllm, config.rollout
    if rollout.engine != "vllm":
        return None
    element, model = 2 if config.compute.precision == "bf16" else 4, sizes.model
    token_bytes = 2 * sizes.layers * sizes.keys * element
    block = GPU_BLOCK if gpu else CPU_BLOCK
    answers = sizes.prompts_of_rank(config) * rollout.group_size
    at_once = min(settings.max_sequences, answers)
    # Whole blocks of a prompt are shared; its rest and the answer are each sequence's own.
    shared = sizes.prompt_tokens // block * block
    own = -(-(sizes.prompt_tokens - shared + sizes.answer_tokens) // block) * block
    wanted = math.ceil(at_once / rollout.group_size) * shared + at_once * own
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
    return Engine(weights, work, cache, token_bytes, wanted, shared + own)
