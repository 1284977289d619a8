"""Checkpoints of a run: whole or absent, verified before use.

`checkpoints/step_000100` is the state after 100 steps: `model/` (a folder that `Emu3ForCausalLM.from_pretrained`
loads), the optimizer, `state.json`, and `manifest.json` with the sha256 of each file. With LoRA, `adapter.safetensors`
stands in for `model/`: the model under the adapters does not change. No
random state is stored: every random number of a run is a function of (seed, step, prompt, sample),
and the order of the prompts one of (seed, position).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from safetensors.torch import save_file

from emu3.checkpoint_facts import CheckpointFacts
from emu3.files import read_json, remove, write_json
from emu3.mllm.language_model import save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.run_folder import VERSION, check_version
from emu3.training import ranks
from emu3.training.checkpoints import fault_of, numbered, rotate, write_note
from emu3.training.state import ADAPTER, collected
from rl.config import Config
from rl.config_file import refuse_another_run
from rl.training.policy import Trainer

MANIFEST = "manifest.json"
FINISHED = "finished.json"
FORMAT = 2
"""Of a checkpoint and of the note that a run is finished; 1 had no version."""
STEM = "step_"


@dataclass(frozen=True)
class RunCheckpoint:
    """A whole checkpoint. step: steps done. prompt_position: the next prompt of the run's order."""

    folder: Path
    step: int
    prompt_position: int


def save(
    run: Path,
    step: int,
    prompt_position: int,
    trainer: Trainer,
    tokenizer: TextTokenizer,
    config: Config,
    facts: CheckpointFacts | None = None,
) -> None:
    """Write the checkpoint of `step` into the run's folder and remove all but the newest `keep_checkpoints`.

    facts: what the model says about itself, but for its steps. All ranks take part, and rank 0 writes. Raises one of
    `WRITE_ERRORS` with nothing left behind: on rank 0, and on the others as well while there is something left that all
    have to do together.
    """
    with ranks.whole_folder_of_first(_folder(run, step)) as temporary:
        if config.lora is None:
            of_step = None if facts is None else replace(facts, steps=step)
            save_model(temporary and temporary / "model", trainer, tokenizer, of_step)
        else:
            adapters = collected(trainer.named_adapters(), temporary is not None)
            ranks.on_first(lambda: save_file(adapters, cast(Path, temporary) / ADAPTER))
        trainer.save_optimizer(temporary)
        if temporary is None:
            return
        write_json(temporary / "state.json", {VERSION: FORMAT, "step": step, "prompt_position": prompt_position})
        write_note(temporary, MANIFEST)
    written = _folder(run, step)
    rotate(written.parent, STEM, MANIFEST, keep=config.keep_checkpoints, written=written)


def save_model(
    folder: Path | None, trainer: Trainer, tokenizer: TextTokenizer, facts: CheckpointFacts | None = None
) -> None:
    """Write the policy, LoRA merged, as `emu3.mllm.language_model.save_checkpoint` does. All ranks take part and have
    the same errors, one of `WRITE_ERRORS`; rank 0 writes, the others have None."""
    state = collected(trainer.named_weights(), folder is not None)

    def write() -> None:
        assert folder is not None
        save_checkpoint(trainer.model, tokenizer, folder, state=state, facts=facts)

    ranks.on_first(write)


def newest(run: Path) -> RunCheckpoint | None:
    """The newest whole checkpoint of a run, None if it has none. Broken ones are named and passed over."""
    for _, folder in reversed(numbered(run / "checkpoints", STEM)):
        fault = fault_of(folder, MANIFEST)
        if fault is None:
            state = read_json(folder / "state.json")
            check_version(folder / "state.json", state, FORMAT)
            return RunCheckpoint(folder, state["step"], state["prompt_position"])
        print(f"checkpoint {folder} is broken ({fault}); trying the one before", flush=True)
    return None


def folder_of(config: Config) -> Path:
    """The run's folder."""
    return Path(config.output_dir) / config.run_name


def note_finished(run: Path, steps: int) -> None:
    """Note that `final` is the model after `steps` steps."""
    write_json(run / FINISHED, {VERSION: FORMAT, "steps": steps})


def is_finished(config: Config) -> bool:
    """Whether the run has done all its steps and left its model. Raises UserError if the folder holds another run."""
    run = folder_of(config)
    if not (run / FINISHED).is_file() or not (run / "final").is_dir():
        return False
    note = read_json(run / FINISHED)
    check_version(run / FINISHED, note, FORMAT)
    refuse_another_run(config, run / "config.json")
    return int(note["steps"]) >= config.steps


def remove_leftovers(run: Path) -> None:
    """Remove what writes that were killed have left in the run's folder, which this process owns: each is as large as a
    checkpoint."""
    for place in (run, run / "checkpoints"):
        for pattern in (".*.tmp", ".*.old"):
            for leftover in place.glob(pattern):
                remove(leftover)


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{STEM}{step:06d}"
