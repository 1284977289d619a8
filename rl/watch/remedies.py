"""Settings that make a run smaller without changing what it computes, but for LoRA, which is tried last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rl.config import Config, LoraConfig

Fits = Callable[[Config], bool]
Change = tuple[str, Callable[[Config], Config]]


def remedies(config: Config, fits: Fits) -> list[str]:
    """Each change of one setting after which the run fits; if there is none, the changes that do it together; if those
    do not either, none. The texts are overrides for the command line."""
    changes = _changes(config)
    single = [text for text, change in changes if fits(change(config))]
    if single:
        return single
    tried = [changes[: count + 1] for count in range(1, len(changes))]
    together = next((some for some in tried if fits(_all(config, some))), None)
    if together is None:
        return []
    for change in list(together):  # what came before the one that did it may not have been needed
        without = [other for other in together if other is not change]
        if fits(_all(config, without)):
            together = without
    return [" ".join(text for text, _ in together)]


def _all(config: Config, changes: Sequence[Change]) -> Config:
    for _, change in changes:
        config = change(config)
    return config


def _changes(config: Config) -> list[Change]:
    """What can still be changed, the cheapest first."""
    compute, rollout = config.compute, config.rollout
    found: list[Change] = []
    if not compute.gradient_checkpointing:
        found.append(("compute.gradient_checkpointing=true", lambda c: _compute(c, gradient_checkpointing=True)))
    if rollout.engine == "local" and rollout.prompts_per_batch > 1:
        found.append(
            ("rollout.prompts_per_batch=1", lambda c: replace(c, rollout=replace(c.rollout, prompts_per_batch=1)))
        )
    if config.objective.kl and compute.zero and compute.reference in ("resident", "offloaded"):
        found.append(("compute.reference=sharded", lambda c: _compute(c, reference="sharded")))
    if config.objective.kl and compute.reference == "resident":
        found.append(("compute.reference=offloaded", lambda c: _compute(c, reference="offloaded")))
    if compute.micro_batch > 1:
        found.append(("compute.micro_batch=1", lambda c: _compute(c, micro_batch=1)))
    if not compute.zero:
        found.append(("compute.zero=2", lambda c: _compute(c, zero=2)))
    if compute.zero != 3:
        found.append(("compute.zero=3", lambda c: _compute(c, zero=3)))
    if not compute.offload_optimizer:
        text = "compute.offload_optimizer=true" if compute.zero else "compute.zero=2 compute.offload_optimizer=true"
        found.append((text, lambda c: _compute(c, zero=c.compute.zero or 2, offload_optimizer=True)))
    if config.lora is None:
        found.append(("lora={}", lambda c: replace(c, lora=LoraConfig())))
    return found


def _compute(config: Config, **changes: object) -> Config:
    return replace(config, compute=replace(config.compute, **changes))  # type: ignore[arg-type]
