"""What vLLM does with its share of a device: weights, work, and a key-value cache, and whether a step fits into it.

On a GPU vLLM takes `memory_share` of the whole device (its `gpu_memory_utilization`), refuses to start where less is
free, and gives the cache what weights, the work of its largest pass and its CUDA graphs leave. On a CPU the share
bounds the cache alone (`emu3.mllm.vllm.start`). Answers whose keys and values do not fit wait, or are thrown out and
computed again ("preempted"): slower, and without a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from emu3.mllm.vllm.start import CPU_BLOCK
from rl.config import Config
from rl.watch.sizes import Sizes

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
