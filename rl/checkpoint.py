"""Checkpoints of a run: whole or absent, verified before use.

`checkpoints/step_000100` is the state after 100 steps: `model/` (a folder that `Emu3ForCausalLM.from_pretrained`
loads), the optimizer, `state.json`, and `manifest.json` with the sha256 of each file. With LoRA, `adapter.safetensors`
stands in for `model/`: the model under the adapters does not change. No
random state is stored: every random number of a run is a function of (seed, step, prompt, sample),
and the order of the prompts one of (seed, position).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors.torch import save_file

from emu3.errors import UserError
from emu3.files import read_json, sha256_of, write_json
from emu3.mllm.language_model import save_checkpoint
from emu3.mllm.text_tokenizer import TextTokenizer
from emu3.training import ranks
from emu3.training.lora import ADAPTER
from emu3.training.state import collected
from rl.config import Config
from rl.training.policy import Trainer

MANIFEST = "manifest.json"


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
) -> None:
    """Write the checkpoint of `step` into the run's folder and remove all but the newest `keep_checkpoints`.

    All ranks take part, and rank 0 writes. Raises one of `WRITE_ERRORS` with nothing left behind: on rank 0, and on
    the others as well while there is something left that all have to do together.
    """
    with ranks.whole_folder_of_first(_folder(run, step)) as temporary:
        if config.lora is None:
            save_model(temporary and temporary / "model", trainer, tokenizer)
        else:
            adapters = collected(trainer.named_adapters(), temporary is not None)
            ranks.on_first(lambda: save_file(adapters, cast(Path, temporary) / ADAPTER))
        trainer.save_optimizer(temporary)
        if temporary is None:
            return
        write_json(temporary / "state.json", {"step": step, "prompt_position": prompt_position})
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        write_json(temporary / MANIFEST, {path.relative_to(temporary).as_posix(): sha256_of(path) for path in files})
    for folder in _folders(run)[: -config.keep_checkpoints]:
        shutil.rmtree(folder)


def save_model(folder: Path | None, trainer: Trainer, tokenizer: TextTokenizer) -> None:
    """Write the policy, LoRA merged, as `emu3.mllm.language_model.save_checkpoint` does. All ranks take part and have
    the same errors, one of `WRITE_ERRORS`; rank 0 writes, the others have None."""
    state = collected(trainer.named_weights(), folder is not None)

    def write() -> None:
        assert folder is not None
        save_checkpoint(trainer.model, tokenizer, folder, state=state)

    ranks.on_first(write)


def newest(run: Path) -> RunCheckpoint | None:
    """The newest whole checkpoint of a run, None if it has none. Broken ones are named and passed over."""
    for folder in reversed(_folders(run)):
        fault = _fault(folder)
        if fault is None:
            return RunCheckpoint(folder, **read_json(folder / "state.json"))
        print(f"checkpoint {folder} is broken ({fault}); trying the one before", flush=True)
    return None


def remove_leftovers(run: Path) -> None:
    """Remove what writes that were killed have left in the run's folder: each is as large as a checkpoint."""
    for place in (run, run / "checkpoints"):
        for pattern in (".*.tmp", ".*.old"):
            for rest in place.glob(pattern):
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, None if every file is as its manifest says."""
    try:
        manifest = read_json(folder / MANIFEST)
    except UserError as error:
        return str(error)
    for name, digest in manifest.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != digest:
            return f"{name} is not what was written"
    return None


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06d}"


def _folders(run: Path) -> list[Path]:
    """Oldest first; temporary folders of interrupted writes begin with a dot and do not count."""
    return sorted((run / "checkpoints").glob("step_*"))
