"""The settings of one RL run: a tree of strict dataclasses; each number has its range and its unit.

`rl.config_file` makes one from a jsonnet file. docs/config.md is the table of all keys, made of these fields.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from emu3.errors import UserError
from emu3.extensions import is_extension
from emu3.settings import PRODUCT, Product, check_numbers, setting
from rl.reward.config import JudgeConfig


@dataclass(frozen=True)
class DataConfig:
    """What is edited: tokenized datasets, and how often each is seen."""

    sets: tuple[str, ...] = setting("folders of shards")
    coefficients: tuple[float, ...] | None = setting(
        "share of each set, above 1 repeats; none: smaller sets are upsampled to the largest", None, above=0
    )


@dataclass(frozen=True)
class VllmConfig:
    """The vLLM engine of `rollout.engine=vllm`; a `local` one reads none of this."""

    memory_share: float = setting(
        "of the device's memory that vLLM may take for weights, activations and key-value cache; on a CPU a bound on "
        "the cache, as a share of main memory over all ranks",
        0.45,
        above=0,
        most=1,
        unit="share",
    )
    sleep: bool = setting("whether it gives that memory back while the trainer works, on GPUs", True)
    max_sequences: int = setting("completions that are sampled at once, at most; a step may have fewer", 128, least=1)
    max_batched_tokens: int = setting(
        "what goes through the model at once, on GPUs; what more of them take the cache lacks",
        4096,
        least=1,
        unit="tokens",
    )


@dataclass(frozen=True)
class RolloutConfig:
    """What is sampled in a step, and how."""

    prompts_per_step: int = setting("prompts of a step, over all ranks", 16, least=1)
    group_size: int = setting("rollouts of each prompt", 8, least=2)
    prompts_per_batch: int = setting("prompts that are sampled at once, on each rank", 16, least=1)
    temperature: float = setting("of sampling, and of the log-probabilities that are trained", 1.0, above=0, most=100)
    think_tokens: int = setting("longest chain of thought; 0 samples without one", 0, least=0, unit="tokens")
    rounds: int = setting(
        "above 1, prompts whose group prefers nothing are replaced by further ones, in at most this many rounds of "
        "sampling (DAPO's dynamic sampling)",
        1,
        least=1,
    )
    ahead: Literal[0, 1] = setting(
        "1 samples the next step before this one is trained, so that the judge has the time of both; the policy that "
        "samples is one update old then, which `objective.importance_cap` makes up for",
        0,
    )
    engine: Literal["local", "vllm"] = setting(
        "`local` samples with the trainer's own weights, `vllm` with a copy of them", "local"
    )
    vllm: VllmConfig = setting("the vLLM engine", VllmConfig)

    def prompts_of_rank(self, ranks: int) -> int:
        """Prompts of a step on the rank that has most."""
        return math.ceil(self.prompts_per_step / ranks)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is maximized; `rl.losses` has the formulas, rl/README.md the differences to the published code."""

    preset: Literal["corrected", "paper", "grpo", "dr_grpo", "dapo"] = setting("the objective", "corrected")
    own: str | None = setting(
        "a loss of one's own in place of the preset's formula, `module:name` or `file.py:name` (docs/extensions.md); "
        "what else the preset chooses stays",
        None,
    )
    kl: float = setting("coefficient of k3, the distance to the start; 0 loads no reference", 3e-4, least=0)
    clip: float = setting("the ratio stays in [1 - clip, 1 + clip]", 0.2, least=0, most=1)
    clip_high: float = setting("`dapo` has 1 + clip_high as the upper end", 0.28, least=0)
    updates: int = setting("optimizer steps on one batch of rollouts (the paper's mu)", 1, least=1)
    importance_cap: float | None = setting(
        "bound on the weight that makes up for the sampler's arithmetic; none: no such weight", None, above=0
    )
    kl_gradient: Literal["policy", "reference"] | None = setting(
        "`reference`: k3 as published, whose gradient is that of KL(reference || policy); `policy`: k3 weighed by the "
        "ratio, with the gradient of KL(policy || reference); none: the preset's own choice",
        None,
    )
    constant_groups: Literal["drop", "keep"] | None = setting(
        "whether a group of equal scores keeps its KL term and its place in the count of tokens; none: the preset's "
        "own choice",
        None,
    )
    min_known: int | None = setting(
        "members of a group that must have a score, at least, for the group to prefer anything; none: the preset's "
        "own choice",
        None,
        least=2,
    )
    min_std: float | None = setting(
        "floor of a group's standard deviation; none: the preset's own choice",
        None,
        least=0,
        most=10,
        unit="points of the reward",
    )

    @property
    def name(self) -> str:
        """What a checkpoint says that it was trained by."""
        return self.preset if self.own is None else f"{self.preset} with {Path(self.own).name}"

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

    lr: float = setting("learning rate", 3e-6, above=0)
    warmup_steps: int = setting("linear warm-up", 0, least=0, unit="steps")
    beta1: float = setting("decay of the mean gradient", 0.9, least=0, below=1)
    beta2: float = setting("decay of the mean squared gradient", 0.999, least=0, below=1)
    eps: float = setting("added to the root of the mean square", 1e-8, above=0)
    weight_decay: float = setting("decoupled, per step and learning rate", 0.0, least=0)
    max_grad_norm: float = setting("longer gradients are scaled down to it", 1.0, above=0)


@dataclass(frozen=True)
class RewardConfig:
    """What a rollout's reward is: a weighted mean of scores, each 0 to 10, and so is the reward."""

    viescore: float = setting("weight of VIEScore", 1.0, least=0)
    groundscore: float = setting(
        "weight of GroundScore, which compares with the dataset's own edit and needs one in every row", 0.0, least=0
    )
    own: str | None = setting(
        "a reward of one's own besides, `module:name` or `file.py:name` (docs/extensions.md)", None
    )
    own_weight: float = setting("its weight", 1.0, above=0)
    expected: bool = setting(
        "every score is the mean under the probabilities of the score's token, so one token is decoded instead of an "
        "explanation; the judge must report them (`logprobs`)",
        False,
    )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on every attention and MLP projection; the rest of the model is frozen."""

    rank: int = setting("of each adapter", 64, least=1)
    alpha: float = setting("an adapter's output is scaled by alpha / rank", 64.0, above=0)


@dataclass(frozen=True)
class ComputeConfig:
    """Where and how the step is computed; none of it changes what is computed, up to rounding."""

    precision: Literal["fp32", "bf16"] = setting("of the arithmetic (master weights and optimizer stay fp32)", "fp32")
    product: Product = setting(PRODUCT, "plain")
    attention: Literal["sdpa", "eager"] = setting(
        "`sdpa` runs a group's prompt once, by torch's flash kernels; `eager` is for tests", "sdpa"
    )
    micro_batch: int = setting("rollouts per forward and backward", 8, least=1)
    zero: Literal[0, 2, 3] = setting(
        "DeepSpeed's ZeRO stage, 0 for a whole copy of everything on each rank; 2 shards gradients and optimizer, 3 "
        "the weights as well",
        0,
    )
    offload_optimizer: bool = setting("keeps the sharded optimizer in main memory", False)
    gradient_checkpointing: bool = setting("computes each layer's activations again in the backward pass", False)
    reference: Literal["resident", "offloaded", "sharded", "adapter_off"] = setting(
        "the frozen model of the KL term: `resident` on every rank, `offloaded` to main memory but while its "
        "log-probabilities are computed, `sharded` over the ranks (with zero), or `adapter_off`, the policy without "
        "its LoRA",
        "resident",
    )
    timeout: float = setting(
        "after which ranks that meet in a computation give one up that does not come; who waits for the disk or the "
        "judge has a day (`emu3.training.ranks`)",
        1800.0,
        above=0,
        most=1e6,
        unit="seconds",
    )
    save_in_background: bool = setting(
        "copies a checkpoint to main memory and writes it while training goes on; false needs no memory for the copy, "
        "and training waits",
        True,
    )
    max_logprob_gap: float = setting(
        "bound on the mean difference between the log-probabilities of the sampler and those of the trainer; a larger "
        "one means that the weights that sample are not the weights that are trained",
        0.2,
        above=0,
        unit="nats",
    )
    max_probe_gap: float | None = setting(
        "the same bound for the probe after each update of a sampling engine's copy of the weights; none is 0.005 in "
        "fp32, 0.1 where `precision` or `product` is bf16 (`rl.rollout.vllm`)",
        None,
        above=0,
        unit="nats",
    )
    memory_check: Literal["warn", "refuse", "off"] = setting(
        "what happens before the start where the estimate of memory (`rl.watch.estimate`) is more than there is: a "
        "warning, or the end of the run; `off` estimates nothing",
        "warn",
    )


@dataclass(frozen=True)
class WatchConfig:
    """What a run shows of itself besides `metrics.jsonl`."""

    images_every: int = setting(
        "between two grids of the best and worst rollouts, 0 for none", 50, least=0, unit="steps"
    )
    report_every: int = setting("between two editions of the local report, 0 for none", 10, least=0, unit="steps")
    tracker: Literal["wandb", "trackio"] | None = setting("where the metrics go besides", None)
    project: str = setting("the tracker's project", "earl")


@dataclass(frozen=True)
class Config:
    """One run. Its folder is `output_dir/run_name`; a run that is started again continues there."""

    run_name: str = setting("the run's folder in `output_dir`, and its name in a tracker")
    output_dir: str = setting("folder of runs")
    model: str = setting("what training starts from: folder or Hub id")
    vision: str = setting("vision tokenizer: folder or Hub id")
    data: DataConfig = setting("the datasets")
    judge: JudgeConfig = setting("the judge")
    tokenizer: str | None = setting("text tokenizer: folder or Hub id; none: the one inside the model", None)
    seed: int = setting("of the prompts' order and of every sample", 0, least=0, most=2**63 - 1)
    steps: int = setting("of the whole run", 2000, least=1, unit="steps")
    save_every: int = setting("between two checkpoints", 100, least=1, unit="steps")
    keep_checkpoints: int = setting("newest ones that stay on disk", 2, least=1)
    rollout: RolloutConfig = setting("sampling", RolloutConfig)
    objective: ObjectiveConfig = setting("the objective", ObjectiveConfig)
    optimizer: OptimizerConfig = setting("the optimizer", OptimizerConfig)
    lora: LoraConfig | None = setting("adapters; none trains all weights", None)
    reward: RewardConfig = setting("the reward", RewardConfig)
    compute: ComputeConfig = setting("where and how", ComputeConfig)
    watch: WatchConfig = setting("what the run shows", WatchConfig)


def check_config(config: Config) -> None:
    """Raise UserError for a number out of range or settings that do not go together."""
    check_numbers(config, lambda name: f"config key {name}")
    config.judge.check(lambda name: f"config key judge.{name}")
    if not config.data.sets:
        raise UserError("config key data.sets: expected at least one folder")
    name = Path(config.run_name)
    if not config.run_name or name.is_absolute() or ".." in name.parts:
        raise UserError(f"config key run_name: expected a folder inside output_dir, got {config.run_name!r}")
    if config.watch.tracker is not None and importlib.util.find_spec(config.watch.tracker) is None:
        tracker = config.watch.tracker
        raise UserError(f"config key watch.tracker is {tracker}, but it is not installed: pip install {tracker}")
    if config.data.coefficients is not None and len(config.data.coefficients) != len(config.data.sets):
        raise UserError(
            f"data.coefficients has {len(config.data.coefficients)} numbers for {len(config.data.sets)} sets"
        )
    if config.reward.own is None and not config.reward.viescore + config.reward.groundscore:
        raise UserError("reward.viescore and reward.groundscore: expected one of the two weights above 0")
    for key, own in (("objective.own", config.objective.own), ("reward.own", config.reward.own)):
        if own is not None and not is_extension(own):
            raise UserError(f"config key {key}: expected package.module:name or path/to/file.py:name, got {own!r}")
    if config.objective.preset == "paper" and config.objective.importance_cap is not None:
        raise UserError(
            "objective.importance_cap does not go with objective.preset=paper: it scores forced tokens, which the "
            "sampler did not draw; take it out, or choose another preset"
        )
    if config.rollout.ahead and config.objective.importance_cap is None:
        raise UserError(
            "rollout.ahead=1 trains on rollouts of an older policy: give objective.importance_cap, such as 2, which "
            "weighs them"
        )
    if config.rollout.ahead and config.rollout.rounds > 1:
        raise UserError("rollout.ahead=1 does not go with rollout.rounds above 1, which need the scores to sample on")
    if (config.objective.min_known or 2) > config.rollout.group_size:
        raise UserError(
            f"objective.min_known is {config.objective.min_known}, more than rollout.group_size="
            f"{config.rollout.group_size}: no group could prefer anything"
        )
    compute = config.compute
    if compute.product != "plain" and (compute.precision != "fp32" or compute.zero):
        raise UserError(f"compute.product={compute.product} goes with compute.precision=fp32 and compute.zero=0 alone")
    if compute.offload_optimizer and not compute.zero:
        raise UserError("compute.offload_optimizer needs compute.zero=2 or 3")
    if compute.reference == "sharded" and not compute.zero:
        raise UserError("compute.reference=sharded needs compute.zero=2 or 3")
    if compute.reference == "adapter_off" and config.lora is None:
        raise UserError("compute.reference=adapter_off needs lora: it is the policy without its adapters")


def with_home(config: Config) -> Config:
    """`~` at the begin of paths is the user's home folder."""

    def path(text: str) -> str:
        return str(Path(text).expanduser()) if text.startswith("~") else text

    def maybe(text: str | None) -> str | None:
        return None if text is None else path(text)

    return replace(
        config,
        output_dir=path(config.output_dir),
        model=path(config.model),
        vision=path(config.vision),
        tokenizer=maybe(config.tokenizer),
        data=replace(config.data, sets=tuple(map(path, config.data.sets))),
        judge=replace(config.judge, cache=maybe(config.judge.cache), prompts=maybe(config.judge.prompts)),
    )
