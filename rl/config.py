"""The settings of one RL run: a tree of strict dataclasses, and the ranges that they have to keep.

`rl.config_file` makes one from a jsonnet file.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from typing import Literal

from emu3.errors import UserError
from rl.reward.config import JudgeConfig


@dataclass(frozen=True)
class DataConfig:
    """sets: folders of shards. coefficients: share of each set, above 1 repeats; none: smaller sets are upsampled."""

    sets: tuple[str, ...]
    coefficients: tuple[float, ...] | None = None


@dataclass(frozen=True)
class VllmConfig:
    """The vLLM engine of `rollout.engine=vllm`; a `local` one reads none of this.

    memory_share: of the device's memory that vLLM may take for weights, activations and key-value cache; on a CPU a
    bound on the cache, as a share of main memory over all ranks. sleep: whether it gives that memory back while the
    trainer works, on GPUs. max_sequences: completions that are sampled at once, at most; a step may have fewer.
    max_batched_tokens: tokens that go through the model at once, on GPUs; what more of them take the cache lacks.
    """

    memory_share: float = 0.45
    sleep: bool = True
    max_sequences: int = 128
    max_batched_tokens: int = 4096


@dataclass(frozen=True)
class RolloutConfig:
    """What is sampled in a step, and how.

    prompts_per_batch: prompts that are sampled at once, on each rank. think_tokens: longest chain of thought; 0
    samples without one. rounds: above 1, prompts whose group prefers nothing are replaced by further ones, in at most
    this many rounds of sampling (DAPO's dynamic sampling). engine: `local` samples with the trainer's own weights,
    `vllm` with a copy of them.
    """

    prompts_per_step: int = 16
    group_size: int = 8
    prompts_per_batch: int = 16
    temperature: float = 1.0
    think_tokens: int = 0
    rounds: int = 1
    engine: Literal["local", "vllm"] = "local"
    vllm: VllmConfig = field(default_factory=VllmConfig)

    def prompts_of_rank(self, ranks: int) -> int:
        """Prompts of a step on the rank that has most."""
        return math.ceil(self.prompts_per_step / ranks)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is maximized; `rl.losses` has the formulas, rl/README.md the differences to the published code.

    kl: coefficient of k3; 0 loads no reference. kl_gradient: `reference`, k3 as published, whose gradient is that of
    KL(reference || policy); `policy`, k3 weighed by the ratio, with the gradient of KL(policy || reference). clip: the
    ratio stays in [1 - clip, 1 + clip]; `dapo` has 1 + clip_high above. updates: optimizer steps on one batch of
    rollouts (the paper's mu). importance_cap: bound on the weight that makes up for the sampler's arithmetic; none: no
    such weight. constant_groups: whether a group of equal scores keeps its KL term and its place in the count of
    tokens. min_known: members of a group that must have a score, at least, for the group to prefer anything. min_std:
    floor of a group's standard deviation, in points of the reward (0 to 10). What is none is the preset's own choice.
    """

    preset: Literal["corrected", "paper", "grpo", "dr_grpo", "dapo"] = "corrected"
    kl: float = 3e-4
    clip: float = 0.2
    clip_high: float = 0.28
    updates: int = 1
    importance_cap: float | None = None
    kl_gradient: Literal["policy", "reference"] | None = None
    constant_groups: Literal["drop", "keep"] | None = None
    min_known: int | None = None
    min_std: float | None = None

    @property
    def scheme(self) -> Literal["grammar", "split"]:
        """Which tokens are scored, see `rl.logprobs`."""
        return "split" if self.preset == "paper" else "grammar"

    @property
    def divide_by_std(self) -> bool:
        """Whether advantages are in units of the group's standard deviation."""
        return self.preset != "dr_grpo"

    @property
    def drop_constant(self) -> bool:
        """Whether a group of equal scores is left out of the loss and of its count of tokens."""
        if self.constant_groups is not None:
            return self.constant_groups == "drop"
        return self.preset in ("corrected", "dapo")

    @property
    def as_printed(self) -> bool:
        """Whether the preset keeps to EARL's code or print in what it leaves open here."""
        return self.preset in ("paper", "grpo")

    @property
    def weighs_kl(self) -> bool:
        """Whether the KL term has the ratio as a weight."""
        return not self.as_printed if self.kl_gradient is None else self.kl_gradient == "policy"

    @property
    def clip_bounds(self) -> tuple[float, float]:
        """Lowest and highest ratio that is not clipped."""
        if self.preset == "paper":
            return 0.0, math.inf
        return 1 - self.clip, 1 + (self.clip_high if self.preset == "dapo" else self.clip)

    def least_known(self, group_size: int) -> int:
        """Scores that a group must have: two as published, else half of its members."""
        if self.min_known is not None:
            return self.min_known
        return 2 if self.as_printed else max(2, group_size // 2)

    @property
    def std_floor(self) -> float:
        """In points of the reward. 0 as published; else what one of 8 has that is next to the others' VIEScore."""
        return self.min_std if self.min_std is not None else 0.0 if self.as_printed else 0.05


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a constant learning rate after `warmup_steps` of linear warm-up."""

    lr: float = 3e-6
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class RewardConfig:
    """What a rollout's reward is: a weighted mean of scores, each 0 to 10, and so is the reward.

    viescore, groundscore: weights of the two; GroundScore compares with the dataset's own edit, and needs one in every
    row. expected: every score is the mean under the probabilities of the score's token, so one token is decoded instead
    of an explanation; the judge must report them (`logprobs`).
    """

    viescore: float = 1.0
    groundscore: float = 0.0
    expected: bool = False


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on every attention and MLP projection; the rest of the model is frozen.

    rank: of each adapter. alpha: its output is scaled by alpha / rank.
    """

    rank: int = 64
    alpha: float = 64.0


@dataclass(frozen=True)
class ComputeConfig:
    """Where and how the step is computed; none of it changes what is computed, up to rounding.

    precision: of the arithmetic (master weights and optimizer stay fp32). micro_batch: rollouts per forward and
    backward. zero: DeepSpeed's ZeRO stage, 0 for a whole copy of everything on each rank; 2 shards gradients and
    optimizer, 3 the weights as well. offload_optimizer: keeps the sharded optimizer in main memory.
    gradient_checkpointing: computes each layer's activations again in the backward pass. reference: the frozen model
    of the KL term, `resident` on every rank, `offloaded` to main memory but while its log-probabilities are computed,
    `sharded` over the ranks (with zero), or `adapter_off`, the policy without its LoRA.
    timeout: seconds after which ranks that meet in a computation give one up that does not come; who waits for the disk
    or the judge has a day (`emu3.training.ranks`).
    max_logprob_gap: bound, in nats, on the mean difference between the log-probabilities of the sampler and those
    of the trainer; a larger one means that the weights that sample are not the weights that are trained.
    max_probe_gap: the same bound for the probe after each update of a sampling engine's copy of the weights; none is
    0.005 in fp32, 0.1 in bf16 (`rl.rollout.vllm`).
    memory_check: what happens before the start where the estimate of memory (`rl.watch.estimate`) is more than there
    is: a warning, or the end of the run; `off` estimates nothing.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    micro_batch: int = 8
    zero: Literal[0, 2, 3] = 0
    offload_optimizer: bool = False
    gradient_checkpointing: bool = False
    reference: Literal["resident", "offloaded", "sharded", "adapter_off"] = "resident"
    timeout: float = 1800.0
    max_logprob_gap: float = 0.2
    max_probe_gap: float | None = None
    memory_check: Literal["warn", "refuse", "off"] = "warn"


@dataclass(frozen=True)
class WatchConfig:
    """What a run shows of itself besides `metrics.jsonl`.

    pictures_every: steps between two grids of the best and worst rollouts, 0 for none. report_every: steps between two
    editions of the local report, 0 for none. tracker: where the metrics go besides; project: its project.
    """

    pictures_every: int = 50
    report_every: int = 10
    tracker: Literal["wandb", "trackio"] | None = None
    project: str = "earl"


@dataclass(frozen=True)
class Config:
    """One run. Its folder is `output_dir/run_name`; a run that is started again continues there."""

    run_name: str
    output_dir: str
    model: str
    vision: str
    data: DataConfig
    judge: JudgeConfig
    tokenizer: str | None = None
    seed: int = 0
    steps: int = 2000
    save_every: int = 100
    keep_checkpoints: int = 2
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    reward: RewardConfig = field(default_factory=RewardConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)


def check_ranges(config: Config) -> None:
    """Raise UserError for a number out of range or settings that do not go together."""
    at_least = {
        "seed": (config.seed, 0),
        "steps": (config.steps, 1),
        "save_every": (config.save_every, 1),
        "keep_checkpoints": (config.keep_checkpoints, 1),
        "rollout.prompts_per_step": (config.rollout.prompts_per_step, 1),
        "rollout.group_size": (config.rollout.group_size, 2),
        "rollout.prompts_per_batch": (config.rollout.prompts_per_batch, 1),
        "rollout.think_tokens": (config.rollout.think_tokens, 0),
        "rollout.rounds": (config.rollout.rounds, 1),
        "objective.kl": (config.objective.kl, 0),
        "objective.updates": (config.objective.updates, 1),
        "objective.min_known": (2 if config.objective.min_known is None else config.objective.min_known, 2),
        "objective.min_std": (config.objective.min_std or 0.0, 0),
        "objective.clip": (config.objective.clip, 0),
        "objective.clip_high": (config.objective.clip_high, 0),
        "optimizer.warmup_steps": (config.optimizer.warmup_steps, 0),
        "rollout.vllm.max_sequences": (config.rollout.vllm.max_sequences, 1),
        "rollout.vllm.max_batched_tokens": (config.rollout.vllm.max_batched_tokens, 1),
        "compute.micro_batch": (config.compute.micro_batch, 1),
        "watch.pictures_every": (config.watch.pictures_every, 0),
        "watch.report_every": (config.watch.report_every, 0),
        "data.sets (their number)": (len(config.data.sets), 1),
    }
    for name, (value, lowest) in at_least.items():
        if value < lowest:
            raise UserError(f"config key {name}: expected at least {lowest}, got {value}")
    config.judge.check(lambda name: f"config key judge.{name}")
    above_zero = {
        "rollout.temperature": config.rollout.temperature,
        "optimizer.lr": config.optimizer.lr,
        "optimizer.max_grad_norm": config.optimizer.max_grad_norm,
        "rollout.vllm.memory_share": config.rollout.vllm.memory_share,
        "lora.rank": config.lora.rank if config.lora else None,
        "lora.alpha": config.lora.alpha if config.lora else None,
        "compute.timeout": config.compute.timeout,
        "objective.importance_cap": config.objective.importance_cap,
        "compute.max_probe_gap": config.compute.max_probe_gap,
    }
    for name, number in above_zero.items():
        if number is not None and not number > 0:
            raise UserError(f"config key {name}: expected more than 0, got {number}")
    if config.watch.tracker is not None and importlib.util.find_spec(config.watch.tracker) is None:
        name = config.watch.tracker
        raise UserError(f"config key watch.tracker is {name}, but it is not installed: pip install {name}")
    if config.data.coefficients is not None and len(config.data.coefficients) != len(config.data.sets):
        raise UserError(
            f"data.coefficients has {len(config.data.coefficients)} numbers for {len(config.data.sets)} sets"
        )
    if (
        config.reward.viescore < 0
        or config.reward.groundscore < 0
        or not config.reward.viescore + config.reward.groundscore
    ):
        raise UserError("reward.viescore and reward.groundscore: expected weights of 0 or more, one of them above 0")
    if config.objective.preset == "paper" and config.objective.importance_cap is not None:
        raise UserError(
            "objective.importance_cap does not go with objective.preset=paper: it scores forced tokens, which the "
            "sampler did not draw; take it out, or choose another preset"
        )
    if (config.objective.min_known or 2) > config.rollout.group_size:
        raise UserError(
            f"objective.min_known is {config.objective.min_known}, more than rollout.group_size="
            f"{config.rollout.group_size}: no group could prefer anything"
        )
    compute = config.compute
    if compute.offload_optimizer and not compute.zero:
        raise UserError("compute.offload_optimizer needs compute.zero=2 or 3")
    if compute.reference == "sharded" and not compute.zero:
        raise UserError("compute.reference=sharded needs compute.zero=2 or 3")
    if compute.reference == "adapter_off" and config.lora is None:
        raise UserError("compute.reference=adapter_off needs lora: it is the policy without its adapters")
