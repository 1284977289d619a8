"""Settings that make a run smaller without changing what it computes, but for LoRA, which is tried last."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from rl.config import Config, LoraConfig

Fits = Callable[[Config], bool]
Change = Callable[[Config], Config]


def remedies(config: Config, fits: Fits) -> list[str]:
    """Each change of one setting after which the run fits; if there is none, the changes that do it together; if those
    do not either, none. The texts are overrides for the command line."""
    changes = _changes(config)
    single = [change(config) for change in changes if fits(change(config))]
    if single:
        return [_overrides(config, changed) for changed in single]
    tried = [changes[: count + 1] for count in range(1, len(changes))]
    together = next((some for some in tried if fits(_all(config, some))), None)
    if together is None:
        return []
    for change in list(together):  # what came before the one that did it may not have been needed
        without = [other for other in together if other is not change]
        if fits(_all(config, without)):
            together = without
    return [_overrides(config, _all(config, together))]


def _all(config: Config, changes: Sequence[Change]) -> Config:
    for change in changes:
        config = change(config)
    return config


def _overrides(config: Config, changed: Config) -> str:
    """`compute.zero=2 compute.offload_optimizer=true`, or `lora={}`: what makes `changed` of `config`."""
    found = []
    for section, settings in asdict(changed).items():
        before = asdict(config)[section]
        if settings == before:
            continue
        if before is None:
            found.append(f"{section}={{}}")
            continue
        pairs = ((key, value) for key, value in settings.items() if value != before[key])
        found += [f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in pairs]
    return " ".join(found)


def _changes(config: Config) -> list[Change]:
    """What can still be changed, the cheapest first."""
    compute, rollout = config.compute, config.rollout
    found: list[Change] = []
    if not compute.gradient_checkpointing:
        found.append(lambda c: _compute(c, gradient_checkpointing=True))
    if rollout.engine == "local" and rollout.prompts_per_batch > 1:
        found.append(lambda c: replace(c, rollout=replace(c.rollout, prompts_per_batch=1)))
    if config.objective.kl and compute.zero and compute.reference in ("resident", "offloaded"):
        found.append(lambda c: _compute(c, reference="sharded"))
    if config.objective.kl and compute.reference == "resident":
        found.append(lambda c: _compute(c, reference="offloaded"))
    if compute.micro_batch > 1:
        found.append(lambda c: _compute(c, micro_batch=1))
    if not compute.zero:
        found.append(lambda c: _compute(c, zero=2))
    if compute.zero != 3:
        found.append(lambda c: _compute(c, zero=3))
    if not compute.offload_optimizer:
        found.append(lambda c: _compute(c, zero=c.compute.zero or 2, offload_optimizer=True))
    if config.lora is None:
        found.append(lambda c: replace(c, lora=LoraConfig()))
    return found


def _compute(config: Config, **changes: object) -> Config:
    return replace(config, compute=replace(config.compute, **changes))  # type: ignore[arg-type]
