"""The configuration of one RL run: a jsonnet file, `key=value` overrides, a strict dataclass.

A key that the dataclass does not know is an error that names its nearest neighbour, a value of another type is an
error, and the resolved configuration is saved beside the run. Files compose by jsonnet's own `import`; environment
variables whose name begins with `APP__` are visible in them as `std.extVar('APP__...')`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import os
import types
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import _jsonnet

from emu3.errors import UserError
from emu3.files import read_json, write_json

DECISIVE = ("model", "vision", "tokenizer", "seed", "data", "rollout", "objective", "optimizer")


@dataclass(frozen=True)
class DataConfig:
    """sets: folders of shards. coefficients: share of each set, above 1 repeats; none: smaller sets are upsampled."""

    sets: tuple[str, ...]
    coefficients: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RolloutConfig:
    """What is sampled in a step, and how.

    prompts_per_batch: prompts that are sampled at once, on each rank. think_tokens: longest chain of thought; 0
    samples without one. rounds: above 1, prompts whose group prefers nothing are replaced by further ones, in at most
    this many rounds of sampling (DAPO's dynamic sampling).
    """

    prompts_per_step: int = 16
    group_size: int = 8
    prompts_per_batch: int = 16
    temperature: float = 1.0
    think_tokens: int = 0
    rounds: int = 1


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is maximised; `rl.losses` has the formulas, rl/README.md the differences to the published code.

    kl: coefficient of k3; 0 loads no reference. clip: the ratio stays in [1 - clip, 1 + clip]; `dapo` has
    1 + clip_high above. updates: optimizer steps on one batch of rollouts (the paper's mu). importance_cap: bound on
    the weight that makes up for the sampler's arithmetic; none: no such weight.
    """

    preset: Literal["corrected", "paper", "grpo", "dr_grpo", "dapo"] = "corrected"
    kl: float = 3e-4
    clip: float = 0.2
    clip_high: float = 0.28
    updates: int = 1
    importance_cap: float | None = None

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
        return self.preset in ("corrected", "dapo")


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
class JudgeConfig:
    """The model that scores, behind an OpenAI address (`.../v1`).

    model: none asks the server. prompts: checkout of VIEScore's published texts; none takes this project's.
    deadline: seconds for one answer, retries included. cache: file of answers that outlives the run.
    max_failed_share: above it a step is not trained on: the run saves, waits `pause_seconds`, asks again for what
    failed, at most `pauses` times, and then ends.
    """

    base_url: str
    model: str | None = None
    prompts: str | None = None
    concurrency: int = 64
    attempts: int = 5
    deadline: float = 300.0
    temperature: float | None = 0.0
    seed: int = 0
    max_tokens: int = 1400
    image_format: Literal["png", "jpeg"] = "png"
    cache: str | None = None
    max_failed_share: float = 0.2
    pause_seconds: float = 60.0
    pauses: int = 30


@dataclass(frozen=True)
class ComputeConfig:
    """precision: of the arithmetic (weights and optimizer stay fp32). micro_batch: rollouts per forward and backward.

    max_logprob_gap: bound, in nats, on the mean difference between the log-probabilities of the sampler and those
    of the trainer; a larger one means that the weights that sample are not the weights that are trained.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    micro_batch: int = 8
    max_logprob_gap: float = 0.2


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
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    wandb_project: str | None = None


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Evaluate a jsonnet file and apply `key=value` overrides (`optimizer.lr=1e-5`). Raises UserError."""
    if not path.is_file():
        raise UserError(f"config {path} does not exist")
    ext_vars = {name: value for name, value in os.environ.items() if name.startswith("APP__")}
    try:
        tree = json.loads(_jsonnet.evaluate_file(str(path), ext_vars=ext_vars))
    except RuntimeError as error:
        raise UserError(f"config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"config {path}: want an object of keys, got {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return build_config(tree)


def build_config(tree: dict[str, Any]) -> Config:
    """A `Config` from plain JSON values. Raises UserError for an unknown or missing key, a wrong type or range."""
    config: Config = _build(Config, tree, "")
    _check_ranges(config)
    return config


def record_config(config: Config, path: Path, *, resuming: bool) -> None:
    """Write the resolved config as JSON. resuming: first refuse, by UserError, to change what decides the result."""
    resolved = dataclasses.asdict(config)
    if resuming:
        before = read_json(path)
        for key in DECISIVE:
            # Through JSON, which has lists for tuples.
            if before.get(key) != json.loads(json.dumps(resolved[key])):
                raise UserError(
                    f"{path} belongs to a run with {key}={json.dumps(before.get(key))}, now it is "
                    f"{json.dumps(resolved[key])}: choose another run_name, or the old value to continue that run"
                )
    write_json(path, resolved)


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r}: want key=value")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"override {override!r}: {key} has no keys of its own")
    tree[last] = value


def _build(cls: type, tree: dict[str, Any], where: str) -> Any:
    fields = {item.name: item for item in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    for key in tree:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)[0]
            raise UserError(f"unknown config key {where}{key}; the nearest known key is {where}{near}")
    for name, item in fields.items():
        if name not in tree and item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"config key {where}{name} is missing")
    return cls(**{key: _value(hints[key], value, f"{where}{key}") for key, value in tree.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _value(arguments[0], value, name)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        assert isinstance(hint, type)
        return _build(hint, value, f"{name}.")
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value))
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is hint:
        return value
    want = " or ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"config key {name}: want {want}, got {value!r}")


def _check_ranges(config: Config) -> None:
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
        "objective.clip": (config.objective.clip, 0),
        "objective.clip_high": (config.objective.clip_high, 0),
        "optimizer.warmup_steps": (config.optimizer.warmup_steps, 0),
        "judge.concurrency": (config.judge.concurrency, 1),
        "judge.attempts": (config.judge.attempts, 1),
        "judge.pause_seconds": (config.judge.pause_seconds, 0),
        "judge.pauses": (config.judge.pauses, 0),
        "compute.micro_batch": (config.compute.micro_batch, 1),
        "data.sets (their number)": (len(config.data.sets), 1),
    }
    for name, (value, lowest) in at_least.items():
        if value < lowest:
            raise UserError(f"config key {name}: want at least {lowest}, got {value}")
    above_zero = {
        "rollout.temperature": config.rollout.temperature,
        "optimizer.lr": config.optimizer.lr,
        "optimizer.max_grad_norm": config.optimizer.max_grad_norm,
        "judge.deadline": config.judge.deadline,
        "objective.importance_cap": config.objective.importance_cap,
    }
    for name, number in above_zero.items():
        if number is not None and not number > 0:
            raise UserError(f"config key {name}: want more than 0, got {number}")
    if config.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError("config key wandb_project is set, but wandb is not installed: pip install wandb")
    if config.data.coefficients is not None and len(config.data.coefficients) != len(config.data.sets):
        raise UserError(
            f"data.coefficients has {len(config.data.coefficients)} numbers for {len(config.data.sets)} sets"
        )
