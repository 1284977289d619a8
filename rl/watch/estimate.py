"""What a run will need, printed before it starts, with a warning and settings that help where it does not fit.

    python -m rl.watch.estimate CONFIG.jsonnet [key=value ...] --ranks 4 --device-memory 80 --device H100

Memory and time come from `rl.watch.costs`. Some of it are rules of thumb, so a run ends only where
`compute.memory_check=refuse` says so, and the command likewise, with code 2. The command needs neither GPU nor data nor
weights, of the models only their config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from accelerate import Accelerator
from transformers import Emu3TextConfig

from emu3.errors import UserError, run_main
from emu3.files import read_json
from emu3.hub import local_folder
from emu3.mllm.language_model import read_config
from emu3.report.console import duration
from emu3.tokenizer.model import StillVQ
from emu3.tokenizer.vision_checkpoint import CONFIG_FILE, layout_of
from emu3.training.memory import GB, Device, Memory, gb, this_device
from rl.config import Config, LoraConfig
from rl.config_file import estimate_arguments, load_config, stand_in
from rl.rollout.engine import Prompt
from rl.watch.costs import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    READ,
    USED,
    Sizes,
    StepSeconds,
    VllmMemory,
    memory,
    step_time,
    vllm_memory,
)

Fits = Callable[[Config], bool]
Change = Callable[[Config], Config]


@dataclass(frozen=True)
class Estimate:
    """What a run needs on a device. seconds: None where they cannot be known beforehand. vllm: None where it does not
    sample."""

    sizes: Sizes
    device: Device
    memory: Memory
    seconds: StepSeconds | None
    vllm: VllmMemory | None = None

    @property
    def fits(self) -> bool:
        starts = self.vllm is None or self.vllm.starts
        return self.memory.total <= self.device.bytes and not self.lacks_main_memory and starts

    @property
    def lacks_main_memory(self) -> bool:
        """Whether what a GPU's run keeps in main memory is more than there is; on a CPU it is the same memory."""
        limit = self.device.machine_bytes
        return self.device.name is not None and limit is not None and sum(self.memory.host.values()) > limit

    @property
    def lines(self) -> list[str]:
        """What is printed before the start."""
        device, needed = self.device, self.memory
        lines = [
            f"estimate for {self.sizes.ranks} x {device.name or 'CPU process'}, prompts of {self.sizes.prompt_tokens} "
            f"and completions of {self.sizes.completion_tokens} tokens",
            *needed.lines(device),
        ]
        if self.vllm is not None:
            lines.append(f"  vLLM: {self._cache(self.vllm)}")
        if self.seconds is None:
            lines.append("  time per step: measured after the first steps")
        else:
            lines.append(
                f"  time per step: sampling at least {duration(self.seconds.sampling)} (at {READ:.0%} of the "
                f"bandwidth), training about {duration(self.seconds.training)} (at {USED:.0%} of the bf16 peak), "
                "judging unknown"
            )
        return lines

    def _cache(self, vllm: VllmMemory) -> str:
        """What the key-value cache holds, and what that means for the completions that are sampled at once."""
        line = f"{gb(max(0.0, vllm.cache))} GB of keys and values hold {vllm.cached_tokens:,} tokens, "
        line += f"the completions sampled at once take {vllm.tokens_at_once:,}"
        if not vllm.preempts:
            return line
        line += ": some will wait, or be thrown out and computed again"
        if self.device.name is None:
            return f"{line}; a larger rollout.vllm.memory_share holds more"
        return f"{line}; rollout.vllm.memory_share={vllm.least_share(self.device.bytes):.2f} holds them"


def estimate(sizes: Sizes, config: Config, device: Device) -> Estimate:
    """Count what a run needs; computes nothing on the device."""
    gpu = device.name is not None
    needed = memory(sizes, config, gpu=gpu, device_bytes=device.bytes, ranks_here=device.ranks_here)
    vllm = vllm_memory(sizes, config, gpu=gpu, device_bytes=device.bytes)
    return Estimate(sizes, device, needed, step_time(sizes, config, device.name) if device.name else None, vllm)


def check(sizes: Sizes, config: Config, device: Device) -> str | None:
    """A warning where the run does not seem to fit, under `compute.memory_check=refuse` a UserError; it names the
    settings that would make it fit."""
    complaint = _complaint(sizes, config, device)
    if complaint is not None and config.compute.memory_check == "refuse":
        raise UserError(complaint)
    return None if complaint is None else f"warning: {complaint}"


def _complaint(sizes: Sizes, config: Config, device: Device) -> str | None:
    found = estimate(sizes, config, device)
    if found.fits:
        return None
    changes = remedies(config, lambda changed: estimate(sizes, changed, device).fits)
    advice = f"it fits with {', or with '.join(changes)}" if changes else "more or larger devices are needed"
    if found.vllm is not None and not found.vllm.starts:
        share = found.vllm.least_share(device.bytes)
        return (
            f"rollout.vllm.memory_share={config.rollout.vllm.memory_share:g} leaves vLLM no room for the keys and "
            f"values of one completion; {share:.2f} holds a step's"
        )
    if found.memory.total > device.bytes:
        needed, limit, place = found.memory.total, device.bytes, f"per {device.place}, most in "
        place += found.memory.largest_phase
    else:
        needed, limit, place = sum(found.memory.host.values()), device.machine_bytes or 0.0, "of main memory"
    return f"this run needs {gb(needed)} GB {place}, and there are {gb(limit)} GB; {advice}"


def announce(config: Config, accelerator: Accelerator, vision: StillVQ, prompts: Sequence[Prompt]) -> None:
    """Before anything large is loaded: print the estimate, and warn of what does not fit, or refuse it. Every rank
    takes part.

    prompts: some of the run's, for their lengths.
    """
    if config.compute.memory_check == "off":
        return
    ranks = accelerator.num_processes
    longest = max((prompt.grammar for prompt in prompts), key=lambda grammar: grammar.length)
    sizes = Sizes(
        model=_language_model(config),
        vision=vision.config,
        vision_parameters=sum(parameter.numel() for parameter in vision.parameters()),
        ranks=ranks,
        prompt_tokens=max(len(prompt.ids) for prompt in prompts),
        completion_tokens=config.rollout.think_tokens + 1 + longest.length,
        forced_tokens=1 + longest.length - len(longest.free_offsets()),
    )
    device = this_device(accelerator.device, ranks)
    accelerator.print("\n".join(estimate(sizes, config, device).lines), flush=True)
    warning = check(sizes, config, device)
    if warning is not None:
        accelerator.print(warning, flush=True)


def read_sizes(config: Config, ranks: int, prompt_tokens: int, completion_tokens: int) -> Sizes:
    """Sizes from the models' config.json alone. Raises UserError if one of them cannot be had."""
    vision = layout_of(read_json(local_folder(config.vision, (CONFIG_FILE,)) / CONFIG_FILE)).config
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in StillVQ(vision).parameters())
    return Sizes(_language_model(config), vision, parameters, ranks, prompt_tokens, completion_tokens)


def _language_model(config: Config) -> Emu3TextConfig:
    return read_config(local_folder(config.model, (CONFIG_FILE,)) / CONFIG_FILE).language_model


def remedies(config: Config, fits: Fits) -> list[str]:
    """Settings that make a run smaller without changing what it computes, but for LoRA, which is tried last: each
    change of one setting after which the run fits; if there is none, the changes that do it together; if those do not
    either, none. The texts are overrides for the command line."""
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
    if compute.save_in_background:
        found.append(lambda c: _compute(c, save_in_background=False))
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


def main() -> None:
    arguments = estimate_arguments()
    stand_in()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.device_memory is None:
        device = this_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"), arguments.ranks)
    else:
        device = Device(arguments.device, arguments.device_memory * GB, None, arguments.ranks)
    completion_tokens = arguments.completion_tokens or COMPLETION_TOKENS + config.rollout.think_tokens
    sizes = read_sizes(config, arguments.ranks, arguments.prompt_tokens or PROMPT_TOKENS, completion_tokens)
    print("\n".join(estimate(sizes, config, device).lines))
    warning = check(sizes, config, device)
    if warning is not None:
        print(warning)


if __name__ == "__main__":
    run_main(main)
